//! From checked addresses to a TCP connection with one of them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::pipeline::deliver::{
    dial::CONNECT_TIMEOUT,
    failure::{Failure, Party, Phase},
};

/// Most addresses that are tried.
const ADDRESSES_MAX: usize = 6;

/// Connects to the first of the addresses that answers, in their order, which is the resolver's (RFC 6724).
/// Each has its share of the time that is left, so that one that swallows everything leaves time for the
/// next.
pub(super) async fn connect(
    party: Party,
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, Failure> {
    let mut last = Failure::connect_timeout(party, Phase::Connecting, CONNECT_TIMEOUT);
    let tried = addresses.len().min(ADDRESSES_MAX);
    for (left, address) in (1..=tried).rev().zip(addresses) {
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        // Cancel safe: dropping it closes the socket.
        match timeout(share, dial(SocketAddr::new(*address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                last = Failure::connect(party, &error);
                if last.is_ours {
                    break;
                }
            }
            Err(_elapsed) => {
                last = Failure::connect_timeout(party, Phase::Connecting, CONNECT_TIMEOUT);
            }
        }
    }
    Err(last)
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A webhook is written at once: there is nothing to gather.
    stream.set_nodelay(true)?;
    Ok(stream)
}
