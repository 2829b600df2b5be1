"""Seconds as people say them."""


def duration(seconds: float) -> str:
    """Return '42 s', '12 min', '3 h 05 min' or '2 d 03 h'."""
    seconds = max(seconds, 0)
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
