"""Dialogues that ask for images, made of captioned images."""
