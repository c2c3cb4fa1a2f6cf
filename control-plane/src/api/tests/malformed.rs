//! What cannot be read, and what is too long to be told back.

use super::{access::world::*, *};

/// Says that messages are compressed.
#[derive(Clone)]
struct Compressed(Bearer);

impl Interceptor for Compressed {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = self.0.call(request)?;
        request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        Ok(request)
    }
}

/// A message that is none is the caller's fault.
#[tokio::test]
async fn undecodable_messages_are_invalid() {
    let server = Server::start().await;
    let methods = operators_methods();
    let method = methods.iter().find(|method| name(method) == "InstanceService/GetInstance").unwrap();
    let refused = call(server.admin(), method, vec![0x0a, 0xff]).await;
    assert_eq!(refusal(refused), (Code::InvalidArgument, "MESSAGE_MALFORMED".to_owned()));
    server.stop().await;
}

/// An encoding that is not taken is told from a method that is not there, with those that are.
#[tokio::test]
async fn compressed_messages_have_a_reason() {
    let server = Server::start().await;
    let compressed = Compressed(Bearer::new(&server.key));
    let client = InterceptedService::new(server.channel.clone(), compressed);
    let request = v1::GetInstanceRequest { id: "inst_1".into() };
    let refused = InstanceServiceClient::new(client).get_instance(request).await.unwrap_err();
    assert_eq!(refused.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    assert!(refused.message().contains("gzip"), "{refused:?}");
    assert_eq!(refusal::<()>(Err(refused)), (Code::Unimplemented, "ENCODING_UNSUPPORTED".to_owned()));
    server.stop().await;
}

/// An id of 20,000 characters is NOT_FOUND as any other, and not told back in full.
#[tokio::test]
async fn long_ids_are_not_told_back() {
    let server = Server::start().await;
    let id = "a".repeat(20_000);
    let refused =
        server.instances().get_instance(v1::GetInstanceRequest { id: id.clone() }).await.unwrap_err();
    let info = refused.get_details_error_info().unwrap();
    assert!(refused.message().len() < 200 && info.metadata["id"].len() < 200, "{refused:?}");
    assert_eq!((refused.code(), info.reason.as_str()), (Code::NotFound, "NOT_FOUND"));
    let request = v1::CreateTenantRequest {
        tenant: Some(v1::Tenant { id, ..Default::default() }),
        ..Default::default()
    };
    let refused = tenants(server.admin()).create_tenant(request).await;
    assert!(refused.as_ref().unwrap_err().message().len() < 1_100);
    assert_eq!(bad_fields(refused), ["tenant.id"]);
    server.stop().await;
}
