"""The verb `demo`: songs asked for and heard in a web page."""
