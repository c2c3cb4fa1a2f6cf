//! Contacts in order.

use super::*;

fn of_contact(number: u32, phone: &str) -> buffer::NewEvent {
    let mut event = event(number, &["sub_a"]);
    event.log.event = "message.received".to_owned();
    event.log.from_phone = phone.to_owned();
    event
}

/// The numbers of the events, in the order in which they were received.
fn order_of(requests: &[receiver::Request]) -> Vec<u32> {
    let number = |request: &receiver::Request| {
        (0..100).find(|number| request.header("webhook-id") == Some(&event_id(*number).to_string())).unwrap()
    };
    requests.iter().map(number).collect()
}

/// A failing event holds the later ones of its contact, also across a restart, and nobody else's; once it gets
/// through, they follow in their order.
#[tokio::test]
async fn contacts_are_in_order() {
    let receiver = Receiver::start(|before| match before {
        0 => Reply::Status(500, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let ordered = v1::WebhookSubscription {
        ordering: v1::DeliveryOrdering::Contact.into(),
        ..after(&[4_000], subscription("sub_a", &receiver.url()))
    };
    let world = World::new([ordered]).await;
    world.buffer.append(entry([of_contact(1, "+1")])).await.unwrap();
    receiver.wait_for(1).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    world.reported_when("the attempt is made", is_made).await;
    let later = [(2, "+1"), (3, "+2"), (4, "+1"), (5, "+2"), (6, "+1")];
    world.buffer.append(entry(later.map(|(number, phone)| of_contact(number, phone)))).await.unwrap();
    assert_eq!(order_of(&receiver.wait_for(3).await), [1, 3, 5]);

    let world = world.restart(clock::now).await;
    assert_eq!(order_of(&receiver.wait_for(7).await)[3..], [1, 2, 4, 6]);
    world.stop().await;
}
