"""From records to model inputs: conversations, images, videos, and batches of them."""
