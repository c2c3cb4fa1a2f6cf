//! Takes webhooks, notes them, answers 200.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{tally::Tally, wire::Connection};

/// The answer to every webhook.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Starts taking webhooks until the returned tasks are dropped.
pub async fn start(tally: Arc<Tally>) -> anyhow::Result<(SocketAddr, JoinSet<io::Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, tally));
    Ok((address, tasks))
}

async fn accept(listener: TcpListener, tally: Arc<Tally>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => { connections.spawn(serve(accepted?.0, Arc::clone(&tally))); }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, tally: Arc<Tally>) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some(webhook) = connection.receive().await? {
        tally.arrived(webhook.body());
        connection.send(OK).await?;
    }
    Ok(())
}
