"""How base models and galleries are made, in folders or around a model in memory."""
