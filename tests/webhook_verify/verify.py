"""Verifies webhooks with the official Standard Webhooks package, as a customer does.

Reads a JSON file: a list of {"secret", "headers", "body"} where body is base64. Every webhook must be
accepted, and the same webhook with one byte changed must be refused.
"""

import base64
import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

with open(sys.argv[1], encoding="utf-8") as file:
    webhooks = json.load(file)

for webhook in webhooks:
    verifier = Webhook(webhook["secret"])
    body = base64.b64decode(webhook["body"])
    verifier.verify(body, webhook["headers"])
    try:
        verifier.verify(body.replace(b"event", b"evemt", 1), webhook["headers"])
    except WebhookVerificationError:
        continue
    sys.exit("a changed body was accepted")

print(len(webhooks))
