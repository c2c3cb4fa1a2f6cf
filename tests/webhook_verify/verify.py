"""Verifies webhooks as a customer does: `v1` with the official Standard Webhooks package, and `v1a`, which that
package does not know, with PyNaCl (libsodium).

Reads a JSON file: a list of {"secret", "public_key", "headers", "body"} where body is base64 and public_key may be
null. Every webhook must be accepted, and the same webhook with one byte changed must be refused.
"""

import base64
import json
import sys

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from standardwebhooks import Webhook, WebhookVerificationError


def verify_symmetric(secret, headers, body):
    """Whether the official package accepts it."""
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def verify_asymmetric(public_key, headers, body):
    """Whether one of its `v1a` signatures is by this key, as the specification says:
    ed25519 over `id.timestamp.body`."""
    key = VerifyKey(base64.b64decode(public_key.removeprefix("whpk_"), validate=True))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    for token in headers["webhook-signature"].split(" "):
        version, signature = token.split(",")
        if version == "v1a":
            try:
                key.verify(signed, base64.b64decode(signature, validate=True))
            except BadSignatureError:
                continue
            return True
    return False


def main(path):
    with open(path, encoding="utf-8") as file:
        webhooks = json.load(file)
    for webhook in webhooks:
        headers, body = webhook["headers"], base64.b64decode(webhook["body"])
        changed = body.replace(b"event", b"evemt", 1)
        checks = [(verify_symmetric, webhook["secret"])]
        if webhook["public_key"] is not None:
            checks.append((verify_asymmetric, webhook["public_key"]))
        for verify, key in checks:
            if not verify(key, headers, body):
                sys.exit(f"{verify.__name__}: a genuine webhook was refused: {headers}")
            if verify(key, headers, changed):
                sys.exit(f"{verify.__name__}: a changed body was accepted")
    print(len(webhooks))


main(sys.argv[1])
