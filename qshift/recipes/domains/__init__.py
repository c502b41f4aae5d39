"""Base models between two domains, trained by PSCA, COUPLE or TPSNet."""
