"""Healing: a converted model learns from its original."""
