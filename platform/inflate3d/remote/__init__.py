"""What lies elsewhere, behind http(s), s3 and other stores: one client for shards and weights (client.py)."""
