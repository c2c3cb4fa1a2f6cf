//! What `gateway dev` prints once it runs: where everything is, and lines to copy.

use std::io;

use super::{Dev, data::DataDir};
use crate::{
    demo::PHONE_NUMBER,
    output::{Look, Output},
};

/// Prints it.
pub fn print(dev: &Dev, output: &Output) -> io::Result<()> {
    output.line(output.look(Look::Good, "WhatsApp Gateway is running. Ctrl-C stops it."))?;
    output.gap()?;
    for (name, value) in facts(dev) {
        output.line(format_args!("  {}{value}", output.look(Look::Faint, format!("{name:<18}"))))?;
    }
    output.gap()?;
    output.line(output.look(Look::Strong, "Try it, in another terminal:"))?;
    for (title, lines) in suggestions(dev) {
        output.gap()?;
        output.line(output.look(Look::Faint, format!("# {title}")))?;
        for line in lines {
            output.line(line)?;
        }
    }
    output.gap()?;
    output.line(output.look(Look::Strong, "Webhooks that the built-in receiver takes:"))
}

fn facts(dev: &Dev) -> Vec<(&'static str, String)> {
    let (programs, standing) = (&dev.programs, &dev.standing);
    let demo = &standing.demo;
    let data = match &dev.data_dir {
        DataDir::Kept(path) => format!("{} (kept)", path.display()),
        DataDir::Temporary(directory) => {
            format!("{} (temporary; keep it with --data-dir DIR)", directory.path().display())
        }
    };
    vec![
        (
            "control plane",
            format!(
                "{} (gRPC{})",
                programs.grpc_addr(),
                if programs.control_plane_ca().is_some() { ", TLS" } else { "" }
            ),
        ),
        ("", format!("http://{}/metrics", programs.control_plane_admin_addr())),
        ("agent", format!("http://{}", programs.callback_addr())),
        ("", format!("http://{}/metrics", programs.agent_admin_addr())),
        ("receiver", dev.receiver.url().to_owned()),
        ("data", data),
        ("instance", format!("{} \"{}\"", demo.instance_id, demo.instance_name)),
        ("", format!("{PHONE_NUMBER} = phone_number_id {}", demo.provider_number_id)),
        ("inbound route", demo.route_id.clone()),
        ("callback URL", dev.session.callback_url.clone()),
        ("app secret", standing.secrets.app_secret.clone()),
        ("verify token", standing.secrets.verify_token.clone()),
        ("subscription", format!("{} -> {}", demo.subscription_id, standing.destination_url)),
        ("signing secret", standing.signing_secret.clone()),
        ("admin key", dev.session.api_key.clone()),
    ]
}

/// How this program is started again: through cargo when cargo built it here.
fn program() -> &'static str {
    let built_here =
        std::env::current_exe().is_ok_and(|path| path.components().any(|part| part.as_os_str() == "target"));
    if built_here { "cargo run --bin gateway --" } else { "gateway" }
}

fn suggestions(dev: &Dev) -> Vec<(&'static str, Vec<String>)> {
    let program = program();
    let address = dev.programs.grpc_addr();
    let grpcurl = match &dev.session.control_plane_ca {
        Some(ca) => format!("grpcurl -cacert {}", ca.display()),
        None => "grpcurl -plaintext".to_owned(),
    };
    let call = |data: &str, method: &str| {
        let data = if data.is_empty() { String::new() } else { format!(" -d '{data}'") };
        vec![format!(
            "{grpcurl} -H \"authorization: Bearer $KEY\"{data} {address} whatsapp_gateway.v1.{method}"
        )]
    };
    let instance = r#"{"instance":{"id":"my-line","display_name":"My Line","provider_number_id":"100200300400500"},"inbound_route":{"id":"my-route","provider":"PROVIDER_META","meta":{"app_secrets":["my-app-secret"],"verify_tokens":["my-verify-token"]}}}"#;
    let subscription = format!(
        r#"{{"webhook_subscription":{{"id":"my-subscription","instance_id":"my-line","destination_url":"{}","events":["message.received","recipient.opted_out"]}}}}"#,
        dev.receiver.url()
    );
    let check = format!(
        r#"{{"instance_id":"{}","phone":"+966500000001","purpose":"PURPOSE_MARKETING"}}"#,
        dev.standing.demo.instance_id
    );
    vec![
        (
            "sample callbacks, and the webhooks that come out",
            ["message.received", "status", "opt-out", "message.received --provider twilio"]
                .map(|what| format!("{program} trigger {what}"))
                .into(),
        ),
        (
            "what came in, as the API shows it (grpcurl: https://github.com/fullstorydev/grpcurl)",
            [
                vec![
                    format!("KEY={}", dev.session.api_key),
                    format!("{grpcurl} -H \"authorization: Bearer $KEY\" {address} list"),
                ],
                call(r#"{"page_size":5}"#, "InboundLogService/ListInboundLogs"),
                call("", "InboundLogService/WatchInboundLogs"),
                call(&check, "OptOutService/CheckSuppression"),
            ]
            .concat(),
        ),
        (
            "a number of your own, with its route and its subscription",
            [
                call(instance, "InstanceService/CreateInstance"),
                call(&subscription, "WebhookSubscriptionService/CreateWebhookSubscription"),
            ]
            .concat(),
        ),
        ("the handshake that Meta does when you save a callback URL", handshake(dev)),
        ("a callback signed by hand", signed_callback(dev)),
        ("the webhooks that the receiver has", vec![format!("curl -s {}", dev.receiver.url())]),
    ]
}

fn handshake(dev: &Dev) -> Vec<String> {
    vec![
        format!("CALLBACK_URL={}", dev.session.callback_url),
        format!(
            "curl -s \"$CALLBACK_URL?hub.mode=subscribe&hub.challenge=12345&hub.verify_token={}\"; echo",
            dev.standing.secrets.verify_token
        ),
    ]
}

fn signed_callback(dev: &Dev) -> Vec<String> {
    let body = format!(
        concat!(
            r#"BODY='{{"object":"whatsapp_business_account","entry":[{{"id":"102290129340398","changes":[{{"#,
            r#""field":"messages","value":{{"messaging_product":"whatsapp","metadata":{{"#,
            r#""display_phone_number":"{}","phone_number_id":"{}"}},"#,
            r#""contacts":[{{"profile":{{"name":"Sample Contact"}},"wa_id":"966500000001"}}],"#,
            r#""messages":[{{"from":"966500000001","id":"wamid.CURL'$(date +%s)'","#,
            r#""timestamp":"'$(date +%s)'","type":"text","text":{{"body":"Hello from curl"}}}}]}}}}]}}]}}'"#,
        ),
        PHONE_NUMBER.trim_start_matches('+'),
        dev.standing.demo.provider_number_id
    );
    vec![
        format!("APP_SECRET={}", dev.standing.secrets.app_secret),
        body,
        "SIGNATURE=$(printf '%s' \"$BODY\" | openssl dgst -sha256 -hmac \"$APP_SECRET\" | sed 's/^.* //')"
            .to_owned(),
        "curl -i \"$CALLBACK_URL\" -H 'content-type: application/json' -H \"x-hub-signature-256: \
         sha256=$SIGNATURE\" --data-binary \"$BODY\""
            .to_owned(),
    ]
}
