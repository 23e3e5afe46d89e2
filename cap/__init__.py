"""Contrastive pruning of pre-trained language models."""
