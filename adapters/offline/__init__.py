"""Trainers of base models. The service never imports them."""
