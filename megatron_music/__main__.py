"""``python -m megatron_music`` is ``megatron-music``."""

from megatron_music.cli import main

if __name__ == "__main__":
    main()
