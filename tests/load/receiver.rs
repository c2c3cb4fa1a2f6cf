//! Takes webhooks, notes them, answers 200; or does not answer at all.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{tally::Tally, wire::Connection};

/// Webhooks to this path are taken and never answered.
pub const HANGING_PATH: &str = "/hanging";
/// The answer to every other webhook.
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
        let is_hanging = webhook
            .head()
            .strip_prefix(b"POST ")
            .is_some_and(|head| head.starts_with(HANGING_PATH.as_bytes()));
        if is_hanging {
            // Until the other side gives up.
            connection.receive().await?;
            break;
        }
        tally.arrived(webhook.body());
        connection.send(OK).await?;
    }
    Ok(())
}

/// An address at which nobody ever accepts: the system takes the first connections and what is sent on them,
/// and drops the packets of all others. It lasts as long as the listener.
pub fn black_hole() -> anyhow::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(socket.listen(1)?)
}
