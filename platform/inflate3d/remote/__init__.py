"""One client for what lies elsewhere: addresses, credentials, ranges, retries, hashes and whole writes."""
