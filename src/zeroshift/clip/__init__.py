"""Sentences, tokenizers and CLIP: features of pictures, texts and learned words."""
