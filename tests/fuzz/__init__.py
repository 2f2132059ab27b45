"""Every decoder of bytes that others may have written, fed with bytes that nobody wrote: see __main__.py."""
