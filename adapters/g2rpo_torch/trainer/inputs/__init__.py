"""From records to model inputs: conversations, images, and batches of them."""
