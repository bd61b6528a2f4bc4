"""Where evidence lives: run folders of atomic files."""
