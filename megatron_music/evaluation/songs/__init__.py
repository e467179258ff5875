"""Measures of songs: what their audio, their f0 files and their lyrics tell without a listener."""
