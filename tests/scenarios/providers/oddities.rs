//! What is genuine is not always what was expected.

use anyhow::ensure;
use gateway_core::event::Provider;
use gateway_tests::World;

use super::{Call, all_lines, dialect, each};

/// Genuine, but not in the provider's format: what is not JSON is 400, another media type 415, and a body that is
/// JSON of any other shape is taken, however deep; nothing of it hurts, and what follows is served. Twilio's forms
/// can be any text.
#[tokio::test]
async fn genuine_oddities_do_no_harm_anywhere() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    each(&lines, async |line| {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let deep_object = format!("{}1{}", r#"{"payload":"#.repeat(50_000), "}".repeat(50_000));
        for body in ["", "{", "no json", "[1,", "\u{0}"] {
            let status = line.call(&Call::of(body)).await?.status;
            let takes_text = line.provider == Provider::Twilio && !body.starts_with(['{', '[']);
            ensure!(status == if takes_text { 200 } else { 400 }, "{body:?} is answered {status}");
        }
        for body in ["[]", "{}", "null", "17", r#""text""#, &deep(200), &deep(100_000), &deep_object] {
            let status = line.call(&Call::of(body)).await?.status;
            let shown: String = body.chars().take(40).collect();
            ensure!(status == 200, "{shown:?} is answered {status}");
        }
        let own = dialect::media_type(line.provider);
        for (media_type, expected) in [
            ("text/plain", 415),
            ("multipart/form-data; boundary=x", 415),
            (&*format!("{own}; charset=UTF-8"), 200),
        ] {
            let (id, body) = line.message("of a media type");
            let call = Call { media_type: Some(media_type.to_owned()), ..Call::of(body) };
            let status = line.call(&call).await?.status;
            ensure!(status == expected, "{media_type} is answered {status}");
            if expected == 200 {
                line.delivered("message.received", &id).await?;
            }
        }
        Ok(())
    })
    .await;
}
