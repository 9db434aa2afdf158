"""Composable decoding strategies for sequence and token scaling."""
