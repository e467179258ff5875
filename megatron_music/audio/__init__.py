"""Reading and writing audio, and the codecs that turn it into codes and back."""
