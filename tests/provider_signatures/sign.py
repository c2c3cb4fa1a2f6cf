"""Proves callbacks as the providers do: with their own libraries where they have one, otherwise with Python's.

Reads one JSON request a line, from the file named or from standard input:
    {"kind", "secret", "method", "url", "body", "options"}
`kind` is what the secret is for, as in `InboundRouteSecretKind` without its prefix and in lower case; `body` is base64;
`options` change what a genuine provider would do. Writes one JSON answer a line:
    {"url", "headers"}
where `url` is the one to call: Twilio adds a parameter to it when the body is no form.

What is signed without options is accepted by the provider's own library, or else the script ends. With `--check` it
signs the published and computed vectors below instead, and ends unless each is met to the byte.
"""

import base64
import hashlib
import hmac
import json
import sys
import time
import uuid
import warnings
from urllib.parse import parse_qsl, urlsplit


def digest(function, key, message):
    return hmac.new(key.encode(), message, function).digest()


def text64(data):
    return base64.b64encode(data).decode()


def sha256_hex(data):
    return hashlib.sha256(data).hexdigest()


def ensure(accepted, what):
    if not accepted:
        sys.exit(f"{what} does not accept its own signature")


def claims_of(defaults, options):
    """The claims, changed as wanted: null removes one."""
    claims = {**defaults, **options.get("claims", {})}
    return {name: value for name, value in claims.items() if value is not None}


def jwt_of(secret, claims, options):
    import jwt

    algorithm = options.get("algorithm", "HS256")
    return jwt.encode(claims, None if algorithm == "none" else secret, algorithm=algorithm)


def meta(request, body, options):
    return {"X-Hub-Signature-256": "sha256=" + digest(hashlib.sha256, request["secret"], body).hex()}


class Form(dict):
    """Parameters by name; `twilio` asks for all values of one."""

    def getlist(self, name):
        return self[name]


def twilio(request, body, options):
    from twilio.request_validator import RequestValidator, add_port, remove_port
    from urllib.parse import urlparse

    validator = RequestValidator(request["secret"])
    url = request["url"]
    if request["method"] == "GET":
        parameters = Form()
    elif body.lstrip()[:1] in (b"{", b"["):
        # The library takes such a body as text.
        parameters = body.decode()
        url += ("&" if urlsplit(url).query else "?") + "bodySHA256=" + validator.compute_hash(parameters)
    else:
        parameters = Form()
        for name, value in parse_qsl(body.decode(), keep_blank_values=True):
            parameters.setdefault(name, []).append(value)
    request["url"] = url
    ports = {"with": add_port, "without": remove_port, None: lambda parsed: parsed.geturl()}
    signed_url = ports[options.get("port")](urlparse(url))
    algorithm = options.get("algorithm")
    signed = {} if isinstance(parameters, str) else parameters
    signature = validator.compute_signature(signed_url, signed, algorithm)
    ensure(validator.validate(url, parameters, signature, algorithm), "twilio")
    headers = {"X-Twilio-Signature": signature}
    if algorithm:
        headers["X-Twilio-Webhooks-Signature-Settings"] = f"key=webhooks_sharedkey_1,algorithm={algorithm}"
    return headers


def vonage(request, body, options):
    from vonage_jwt import verify_signature

    claims = claims_of(
        {
            "iss": "Vonage",
            "iat": int(time.time()),
            "jti": str(uuid.uuid4()),
            "payload_hash": sha256_hex(body),
            "api_key": "a1b2c3d4",
            "application_id": "aaaaaaaa-bbbb-cccc-dddd-0123456789ab",
        },
        options,
    )
    token = jwt_of(request["secret"], claims, options)
    ensure(options or verify_signature(token, request["secret"]), "vonage-jwt")
    return {"Authorization": f"Bearer {token}"}


def messagebird(request, body, options):
    if "old_time" in options:
        return messagebird_before_2021(request, body, options["old_time"])
    from messagebird.request_validator import RequestValidator

    now = int(time.time())
    claims = claims_of(
        {
            "iss": "MessageBird",
            "nbf": now,
            "exp": now + 60,
            "jti": str(uuid.uuid4()),
            "url_hash": sha256_hex(request["url"].encode()),
            "payload_hash": sha256_hex(body) if body else None,
        },
        options,
    )
    token = jwt_of(request["secret"], claims, options)
    if not options:
        # Raises when it is not valid.
        RequestValidator(request["secret"]).validate_signature(token, request["url"], body)
    return {"MessageBird-Signature-JWT": token}


def messagebird_before_2021(request, body, timestamp):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from messagebird.signed_request import SignedRequest

        query = dict(parse_qsl(urlsplit(request["url"]).query, keep_blank_values=True))
        unsigned = SignedRequest("", timestamp, body.decode("latin-1"), query)
        signature = text64(digest(hashlib.sha256, request["secret"], unsigned._build_payload().encode("latin-1")))
        signed = SignedRequest(signature, timestamp, body.decode("latin-1"), query)
        ensure(signed.verify(request["secret"]), "messagebird")
    return {"MessageBird-Signature": signature, "MessageBird-Request-Timestamp": str(timestamp)}


def bird(request, body, options):
    timestamp = str(options.get("time", int(time.time())))
    message = b"\n".join([timestamp.encode(), request["url"].encode(), hashlib.sha256(body).digest()])
    signature = text64(digest(hashlib.sha256, request["secret"], message))
    return {"messagebird-signature": signature, "messagebird-request-timestamp": timestamp}


def waha(request, body, options):
    return {
        "X-Webhook-Request-Id": str(uuid.uuid4()),
        "X-Webhook-Timestamp": str(int(time.time() * 1000)),
        "X-Webhook-Hmac": digest(hashlib.sha512, request["secret"], body).hex(),
        "X-Webhook-Hmac-Algorithm": options.get("algorithm", "sha512"),
    }


def evolution(request, body, options):
    import jwt

    issued = options.get("claims", {}).get("iat") or int(time.time())
    claims = {"iat": issued, "exp": issued + 600, "app": "evolution", "action": "webhook"}
    token = jwt_of(request["secret"], claims_of(claims, options), options)
    if not options:
        jwt.decode(token, request["secret"], algorithms=["HS256"])
    return {"Authorization": f"Bearer {token}"}


def basic(request, body, options):
    return {"Authorization": "Basic " + text64(request["secret"].encode())}


def header(request, body, options):
    name, value = request["secret"].split(":", 1)
    return {name.strip(): value.strip()}


KINDS = {
    "meta_app_secret": meta,
    "twilio_auth_token": twilio,
    "vonage_signature_secret": vonage,
    "messagebird_signing_key": messagebird,
    "bird_signing_key": bird,
    "waha_hmac_key": waha,
    "evolution_jwt_key": evolution,
    "basic_credential": basic,
    "header": header,
}


def answer(request):
    headers = KINDS[request["kind"]](request, base64.b64decode(request["body"]), request["options"])
    return {"url": request["url"], "headers": headers}


HOST = "https://gw.example.com/in"
TWILIO_TOKEN = "12345678901234567890123456789012"
TWILIO_URL = f"{HOST}/twilio/abc?tenant=7"
TWILIO_FORM = (
    "AccountSid=AC00000000000000000000000000000000&ApiVersion=2010-04-01&Body=Hola+%C3%B1+%26+1%2B1%3D2&ButtonPayload="
    "&From=whatsapp%3A%2B16505551234&MessageSid=SM00000000000000000000000000000001&NumMedia=0&ProfileName=Zo%C3%AB"
    "&SmsStatus=received&To=whatsapp%3A%2B15550783881&WaId=16505551234"
)
# twilio/twilio-python `tests/unit/test_request_validator.py`.
TWILIO_OWN_URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
TWILIO_OWN_FORM = (
    "CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309"
)
VONAGE_BODY = (
    '{"channel":"whatsapp","message_uuid":"aaaaaaaa-bbbb-4ccc-8ddd-0123456789ab","to":"447700900000",'
    '"from":"447700900001","timestamp":"2025-02-03T12:14:25Z","message_type":"text","text":"STOP"}'
)
MESSAGEBIRD_KEY = "mb-signing-key-0123456789abcdef0123"
MESSAGEBIRD_BODY = '{"type":"message.created","message":{"id":"mesid"}}'
BIRD_BODY = (
    '{"service":"channels","event":"whatsapp.inbound","payload":{"id":"404544c5-9920-45f1-8990-0855634ab7ac"}}'
)

# Kind, secret, URL, body, options; a header and its value.
VECTORS = [
    (
        "meta_app_secret", "meta-app-secret-1", "", '{"object":"whatsapp_business_account","entry":[]}', {},
        "X-Hub-Signature-256", "sha256=591c61d5cd8d82edc4fb053624ca097fc176aaec975b0f10930eeac6416f14ae",
    ),
    ("twilio_auth_token", TWILIO_TOKEN, TWILIO_URL, TWILIO_FORM, {},
     "X-Twilio-Signature", "l5WwYWrQ/x54eZHVbMLXn4UIdoU="),
    ("twilio_auth_token", TWILIO_TOKEN, TWILIO_URL, TWILIO_FORM, {"port": "with"},
     "X-Twilio-Signature", "HaAw94ziptJrE0PF043rGGSBcH8="),
    ("twilio_auth_token", TWILIO_TOKEN, TWILIO_URL, '{"a":1,"b":"ñ"}', {},
     "X-Twilio-Signature", "T7zaE0fPRXf5di93LxhtxmU8XWY="),
    ("twilio_auth_token", "12345", TWILIO_OWN_URL, TWILIO_OWN_FORM, {},
     "X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    ("twilio_auth_token", "12345", TWILIO_OWN_URL, TWILIO_OWN_FORM, {"port": "with"},
     "X-Twilio-Signature", "kvajT1Ptam85bY51eRf/AJRuM3w="),
    ("twilio_auth_token", "12345", TWILIO_OWN_URL.replace("https", "http"), TWILIO_OWN_FORM, {"port": "with"},
     "X-Twilio-Signature", "0ZXoZLH/DfblKGATFgpif+LLRf4="),
    ("twilio_auth_token", "12345", TWILIO_OWN_URL,
     "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234", {},
     "X-Twilio-Signature", "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
    (
        "vonage_signature_secret", "vonage-signature-secret-0123456789abcdef", "", VONAGE_BODY,
        {"claims": {"iat": 1738584865, "jti": "c5ba8f24-1a14-4c10-bfdf-3fbe8ce511b5"}},
        "Authorization",
        "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJWb25hZ2UiLCJpYXQiOjE3Mzg1ODQ4NjUsImp0aSI6ImM1YmE4ZjI0LTFh"
        "MTQtNGMxMC1iZmRmLTNmYmU4Y2U1MTFiNSIsInBheWxvYWRfaGFzaCI6Ijk2MmIyMzlkZDgwODgwYjZlOTM4MjA0OWQxM2RkNjU3ZGRiYzczZTg2"
        "M2FlZGViMDkwZmM3M2Q2ODA1NTc5YmIiLCJhcGlfa2V5IjoiYTFiMmMzZDQiLCJhcHBsaWNhdGlvbl9pZCI6ImFhYWFhYWFhLWJiYmItY2NjYy1k"
        "ZGRkLTAxMjM0NTY3ODlhYiJ9.zIOlWBLowPBSKKC0naqogxYFs7JUeoQI6dDBWUZjrhc",
    ),
    (
        "messagebird_signing_key", MESSAGEBIRD_KEY, f"{HOST}/messagebird/abc?tenant=7", MESSAGEBIRD_BODY,
        {"claims": {"nbf": 1700000000, "exp": 4102444800, "jti": "11111111-2222-3333-4444-555555555555"}},
        "MessageBird-Signature-JWT",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJNZXNzYWdlQmlyZCIsIm5iZiI6MTcwMDAwMDAwMCwiZXhwIjo0MTAyNDQ0ODAwLCJ"
        "qdGkiOiIxMTExMTExMS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUiLCJ1cmxfaGFzaCI6IjZmMTE2YTRiMWZiZmNhYWQyZjEyMzllOTU1YTB"
        "iZTNlOTYyNGU2OWZkMThlMDdjMTIyNGFmYmRhODMzNjk3MGQiLCJwYXlsb2FkX2hhc2giOiJhMDBjNTJlZmZkMDMwZjZhZWUxZWI3Yzg3MjljY2M"
        "yMDQ1MDBiZTc3MTY2NjJlMzEyZmY2MjNkMzUzNDdlMDMwIn0.X-EQqhhSy6X2OdMhnuneuk8JtIYkSaAe98NjJLpWkNg",
    ),
    ("messagebird_signing_key", MESSAGEBIRD_KEY, f"{HOST}/messagebird/abc?id=9&tenant=7", MESSAGEBIRD_BODY,
     {"old_time": 1544544948}, "MessageBird-Signature", "04sKo1ykqcfAgUUCfAyHOTVBi0rN0QeKs6QNgW6/r8Q="),
    ("bird_signing_key", "bird-signing-key", f"{HOST}/bird/abc", BIRD_BODY, {"time": 1719823259},
     "messagebird-signature", "CNWKgs3/XWIiDTuNyDmyn6Zuz/pWU/ReXkm7tQ/6jhc="),
    # waha.devlike.pro/docs/how-to/events/#hmac-authentication.
    ("waha_hmac_key", "my-secret-key", "", '{"event":"message","session":"default","engine":"WEBJS"}', {},
     "X-Webhook-Hmac",
     "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1"
     "631777076153fa89"),
    ("evolution_jwt_key", "evolution-jwt-key-0123456789abcdef", "", "{}", {"claims": {"iat": 1700000000}},
     "Authorization",
     "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMCwiYXBwIjoiZXZvbHV0aW9u"
     "IiwiYWN0aW9uIjoid2ViaG9vayJ9.vfFP7UMSZ_0yT43wmp0-1rveEzwRjDU5AEHPxRdjZ58"),
    ("basic_credential", "hook-user:p@ss:wörd", "", "", {},
     "Authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ="),
    ("header", "X-Hook-Secret: planted: one", "", "", {}, "X-Hook-Secret", "planted: one"),
]


def check():
    for kind, secret, url, body, options, name, expected in VECTORS:
        body = text64(body.encode())
        request = {"kind": kind, "secret": secret, "method": "POST", "url": url, "body": body, "options": options}
        value = answer(request)["headers"][name]
        if value != expected:
            sys.exit(f"{kind} {options}: {name} is {value}, not {expected}")
    print(len(VECTORS))


def main(arguments):
    if arguments == ["--check"]:
        return check()
    with open(arguments[0] if arguments else 0, encoding="utf-8") as requests:
        for line in requests:
            print(json.dumps(answer(json.loads(line))), flush=True)


main(sys.argv[1:])
