"""Spending a budget on estimates: plan, sample, verify, record; as durable jobs."""
