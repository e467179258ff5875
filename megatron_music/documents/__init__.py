"""Token documents from songs, one file a task: ids as the models read them, and a kind for every id."""
