"""Is it an ODE, and is its gradient right? Each diagnostic a function of a network and a batch."""

from odenet.diagnostics.gradient_audit import Audit, MethodAudit, audit_gradients

__all__ = ["Audit", "MethodAudit", "audit_gradients"]
