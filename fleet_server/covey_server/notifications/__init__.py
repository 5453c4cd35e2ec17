"""Telling others of what happens: events, an outbox, webhooks and e-mail."""
