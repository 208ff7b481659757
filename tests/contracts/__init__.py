"""Contracts that every task, objective and model keeps."""
