//! tonic behind the listener: answers a message with its bytes, without generated code. Ctrl-C:
//! takes nobody more, answers what was asked, and ends.

use std::{
    convert::Infallible,
    error::Error,
    task::{Context, Poll},
};

use backlogd_shed::{AcceptError, ShedListener};
use bytes::{Buf as _, BufMut as _};
use tokio::signal;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService},
    transport::Server,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = ShedListener::bind("127.0.0.1:50051").soft(1_000).build()?;
    serve(listener, async { drop(signal::ctrl_c().await) }).await
}

/// Serves until `stop` ends, and then those who have asked.
pub(crate) async fn serve(
    listener: ShedListener,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let handle = listener.handle();
    let incoming = listener.into_stream();
    Server::builder().add_service(Echo).serve_with_incoming_shutdown(incoming, stop).await?;
    // where the listener failed, tonic ends as if it was told to
    match handle.ended().await {
        AcceptError::Closed => Ok(()),
        err => Err(err.into()),
    }
}

/// The service; its one method answers with what it was sent.
#[derive(Clone, Debug)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "example.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(Grpc::new(Raw).unary(Echo, request).await) })
    }
}

impl Service<Request<Vec<u8>>> for Echo {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let peer = request.remote_addr();
        Box::pin(async move {
            peer.ok_or_else(|| Status::internal("no peer"))?;
            Ok(Response::new(request.into_inner()))
        })
    }
}

/// Messages as they are; what prost and its like are otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining()).into()))
    }
}
