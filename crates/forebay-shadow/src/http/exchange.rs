//! One request to one instance, and its answer: bytes up, bytes down, both at once if need be.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;

use super::body::Body;
use super::bulk::{Ask, BULK_MIN, Broke, Bulk, Waits};
use super::client::{Client, STEP_BOUND};
use super::head::{self, Bad, Method, Request, Response, Search};
use super::mirror::Print;
use super::wire;
use crate::flights::Ticket;
use crate::stream::Stream;

/// Bytes of a request that are kept until its answer begins, so that it can be sent again.
pub(crate) const RETAINED_MAX: usize = 64 * 1024;
/// An answer of a known length up to this one is passed on once it is whole: when its instance is
/// lost in the middle, the client has seen nothing of it.
const HELD_MAX: usize = 64 * 1024;

/// What went wrong in an exchange.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The client's connection broke or ended.
    Client(io::Error),
    /// The client sends what may not be passed on.
    ClientBad(Bad),
    /// The instance's connection broke or ended.
    Instance(io::Error),
    /// The instance was lost and replaced.
    Replaced,
    /// The instance answers with what may not be passed on.
    AnswerBad(Bad),
}

/// A request on its way to an instance. Its bytes are in the client's buffer.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Bytes of the buffer that belong to it.
    known: usize,
    /// Of those, bytes that were written.
    sent: usize,
    /// What of its body did not come yet.
    body: Body,
    /// The client has brought nothing since its time for the next byte began.
    waits: bool,
    /// When the latest of it came, if anything did after its head.
    came: Option<Instant>,
    /// All of it that came is still in the buffer.
    pub(crate) retained: bool,
    /// The instance takes no more.
    stopped: bool,
}

impl Upload {
    /// Of a request whose head the client's buffer begins with, as it is to be passed on.
    ///
    /// # Errors
    /// When its body is malformed.
    pub(crate) fn of(client: &Client, request: &Request) -> Result<Self, Bad> {
        let mut body = request.body;
        let after = client.buffer.get(request.length..).unwrap_or_default();
        let taken = body.take(after)?;
        Ok(Self {
            known: request.length + taken,
            sent: 0,
            body,
            waits: false,
            came: None,
            retained: true,
            stopped: false,
        })
    }

    /// All of it came from the client.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.is_done()
    }

    /// It is small enough to be waited for before an instance is asked.
    pub(crate) fn is_small(&self) -> bool {
        match self.body {
            Body::Length(left) => usize::try_from(left)
                .is_ok_and(|left| self.known.saturating_add(left) <= RETAINED_MAX),
            Body::Chunked(_) | Body::Close => false,
        }
    }

    /// Bytes of it that were written, as long as it is retained.
    pub(crate) const fn sent(&self) -> usize {
        self.sent
    }

    /// When the latest of it came from the client, if anything did after its head.
    pub(crate) const fn came(&self) -> Option<Instant> {
        self.came
    }

    /// Its bytes in the buffer.
    pub(crate) const fn known(&self) -> usize {
        self.known
    }

    /// It is to be sent from its beginning.
    pub(crate) const fn again(&mut self) {
        self.sent = 0;
        self.stopped = false;
        self.waits = false;
    }

    /// Reads more of it from the client.
    fn poll_more(
        &mut self,
        client: &mut Client,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        let from = client.buffer.len();
        let read = match wire::poll_read(&mut client.link, context, &mut client.buffer) {
            Poll::Pending => {
                // The client's time is what is waited for it, not what an instance took before.
                if !std::mem::replace(&mut self.waits, true) {
                    client.stall.expect(STEP_BOUND);
                }
                client.stalled(context)
            }
            read @ Poll::Ready(_) => {
                self.waits = false;
                read
            }
        };
        match ready!(read) {
            Ok(0) => Poll::Ready(Err(Fault::Client(io::ErrorKind::UnexpectedEof.into()))),
            Ok(_) => {
                self.came = Some(Instant::now());
                let new = client.buffer.get(from..).unwrap_or_default();
                self.known += self.body.take(new).map_err(Fault::ClientBad)?;
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Poll::Ready(Err(Fault::ClientBad(super::client::SLOW)))
            }
            Err(error) => Poll::Ready(Err(Fault::Client(error))),
        }
    }

    /// Waits until all of it came.
    ///
    /// # Errors
    /// When it does not, or is malformed.
    pub(crate) async fn gather(&mut self, client: &mut Client) -> Result<(), Fault> {
        while !self.is_whole() {
            poll_fn(|context| self.poll_more(client, context)).await?;
        }
        Ok(())
    }

    /// Passes it on; ready when all of it was written.
    fn poll(
        &mut self,
        client: &mut Client,
        instance: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        loop {
            while self.sent < self.known && !self.stopped {
                let rest = client.buffer.get(self.sent..self.known).unwrap_or_default();
                match ready!(wire::poll_write(instance, context, rest)) {
                    Ok(written) => self.sent += written,
                    // It may have answered before it stopped reading.
                    Err(_) => self.stopped = true,
                }
            }
            if self.stopped || self.is_whole() {
                return Poll::Ready(Ok(()));
            }
            if self.known > RETAINED_MAX {
                self.retained = false;
            }
            if !self.retained {
                // While a body is incomplete, all of the buffer belongs to it.
                client.buffer.clear();
                self.known = 0;
                self.sent = 0;
            }
            ready!(self.poll_more(client, context))?;
        }
    }
}

/// An answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Download {
    buffer: Vec<u8>,
    /// Bytes of the buffer that belong to it.
    known: usize,
    /// Of those, bytes that the client has.
    sent: usize,
    body: Body,
    search: Search,
    /// The client has some of it.
    pub(crate) begun: bool,
    /// The client takes nothing, since its time for the next byte began.
    waits: bool,
    /// The instance's connection ended.
    ended: bool,
    /// What a large body passes through, once it does.
    bulk: Option<Bulk>,
    /// What is compared of it, if anything.
    pub(crate) print: Option<Print>,
}

impl Download {
    pub(crate) fn new() -> Self {
        Self {
            buffer: wire::buffer(),
            known: 0,
            sent: 0,
            body: Body::Close,
            search: Search::default(),
            begun: false,
            waits: false,
            ended: false,
            bulk: None,
            print: None,
        }
    }

    /// It was whole, and nothing came after it.
    pub(crate) fn is_clean(&self) -> bool {
        !self.ended && self.body.is_done() && self.known == self.buffer.len()
    }

    /// An end of the connection is the end of the answer, so that nobody can tell a break from it.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.body == Body::Close
    }

    fn head(&mut self, asked: Method, client: &mut Client) -> Result<Option<Response>, Fault> {
        let found = self.search.find(&self.buffer).map_err(Fault::AnswerBad)?;
        let Some(length) = found else {
            return Ok(None);
        };
        client.cuts.clear();
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let response = head::response(bytes, asked, &mut client.cuts);
        response.map(Some).map_err(Fault::AnswerBad)
    }

    /// Puts the head into the form in which the client gets it, and finds what of its body came.
    fn begin(
        &mut self,
        response: &Response,
        lines: &[u8],
        client: &mut Client,
    ) -> Result<(), Fault> {
        let length = head::rewrite(&mut self.buffer, response.length, &mut client.cuts, lines);
        if !response.modern
            && let Some(version) = self.buffer.get_mut(..8)
        {
            // The version is this hop's (RFC 9110, 6.2).
            version.copy_from_slice(b"HTTP/1.1");
        }
        self.body = response.body;
        if self.print.is_some() {
            self.print = Some(Print::of(response.status));
        }
        self.known = length;
        self.take(length)
    }

    /// Takes in what of the body was appended to the buffer.
    fn take(&mut self, from: usize) -> Result<(), Fault> {
        let new = self.buffer.get(from..).unwrap_or_default();
        let taken = match &mut self.print {
            Some(print) => self.body.take_into(new, |content| print.add(content)),
            None => self.body.take(new),
        };
        self.known += taken.map_err(Fault::AnswerBad)?;
        Ok(())
    }

    /// The client is not to get any of it yet.
    fn is_held(&self) -> bool {
        match self.body {
            Body::Length(left) if left > 0 && !self.begun => {
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                self.known.saturating_add(left) <= HELD_MAX
            }
            _ => false,
        }
    }

    /// Takes in what was appended to the buffer, or that the connection ended.
    fn add(&mut self, from: usize) -> Result<(), Fault> {
        if self.buffer.len() <= from {
            self.ended = true;
            return match self.body {
                Body::Close => Ok(()),
                _ => Err(Fault::Instance(io::ErrorKind::UnexpectedEof.into())),
            };
        }
        self.take(from)
    }

    /// Passes a large body on beside this process; nothing where that is not to be done.
    fn poll_bulk(
        &mut self,
        instance: &Stream,
        client: &mut Client,
        ask: Ask,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<(), Fault>>> {
        let Body::Length(left) = &mut self.body else {
            return Poll::Ready(None);
        };
        if self.bulk.is_none() {
            // What is compared has to be seen.
            if *left < BULK_MIN || self.print.is_some() || client.link.plain().is_none() {
                return Poll::Ready(None);
            }
            match Bulk::new() {
                Ok(bulk) => self.bulk = Some(bulk),
                Err(error) => {
                    tracing::debug!(%error, "a body is copied");
                    return Poll::Ready(None);
                }
            }
        }
        let Client { link, stall, .. } = client;
        let (Some(bulk), Some(plain)) = (&mut self.bulk, link.plain()) else {
            return Poll::Ready(None);
        };
        loop {
            let before = (*left, bulk.held());
            let passed = bulk.pass((instance, plain), left, ask);
            let ready = match passed {
                Ok(None) => return Poll::Ready(Some(Ok(()))),
                Ok(Some(Waits::Turn)) => {
                    stall.expect(STEP_BOUND);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Some(Waits::From)) if ask == Ask::Kernel => {
                    return Poll::Ready(Some(Err(Fault::Replaced)));
                }
                Ok(Some(Waits::From)) => instance.poll_read_ready(context).map_err(Fault::Instance),
                Ok(Some(Waits::To)) => {
                    if before != (*left, bulk.held()) {
                        stall.expect(STEP_BOUND);
                    }
                    match plain.poll_write_ready(context) {
                        Poll::Pending => wire::late(stall, context).map_err(Fault::Client),
                        ready => ready.map_err(Fault::Client),
                    }
                }
                Err(Broke::From(error)) => Poll::Ready(Err(Fault::Instance(error))),
                Err(Broke::To(error)) => Poll::Ready(Err(Fault::Client(error))),
            };
            if let Err(fault) = ready!(ready) {
                return Poll::Ready(Some(Err(fault)));
            }
        }
    }

    /// Forgets what the client has. While it is incomplete, all of the buffer belongs to it.
    fn restart(&mut self) {
        self.buffer.clear();
        self.known = 0;
        self.sent = 0;
        self.waits = false;
    }

    /// Writes what the client may have; ready when it has that.
    fn poll_flush(
        &mut self,
        client: &mut Client,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        while self.sent < self.known {
            let rest = self.buffer.get(self.sent..self.known).unwrap_or_default();
            match wire::poll_write(&mut client.link, context, rest) {
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.begun = true;
                    self.waits = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::Client(error))),
                Poll::Pending => return self.wait(client, context),
            }
        }
        match Pin::new(&mut client.link).poll_flush(context) {
            Poll::Pending => self.wait(client, context),
            flushed => {
                self.waits = false;
                flushed.map_err(Fault::Client)
            }
        }
    }

    /// The client takes nothing now: its time for the next byte begins with that.
    fn wait(&mut self, client: &mut Client, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if !std::mem::replace(&mut self.waits, true) {
            client.stall.expect(STEP_BOUND);
        }
        client.stalled(context).map_err(Fault::Client)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        wire::give_back(std::mem::take(&mut self.buffer));
    }
}

/// Nobody waits for the answer any more: to go on would take an instance's time for nothing.
const fn fault_of_client<T>(gone: io::Error) -> Result<T, Fault> {
    Err(Fault::Client(gone))
}

/// The two ends of an exchange.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) instance: &'a mut Stream,
    pub(crate) upload: &'a mut Upload,
    pub(crate) download: &'a mut Download,
}

impl Ends<'_> {
    fn poll_up(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        match self.upload.poll(self.client, self.instance, context) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_down(
        &mut self,
        ticket: Option<&Ticket<'_>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Fault>> {
        let from = self.download.buffer.len();
        let read = wire::poll_read(self.instance, context, &mut self.download.buffer);
        if let Some(ticket) = ticket
            && matches!(read, Poll::Ready(Ok(1..)))
        {
            ticket.heard();
        }
        match read {
            Poll::Pending => self.client.poll_gone(context).map(fault_of_client),
            Poll::Ready(read) => Poll::Ready(read.map(|_| from).map_err(Fault::Instance)),
        }
    }

    /// Sends the request and waits for the answer's head.
    ///
    /// # Errors
    /// Whatever broke first.
    pub(crate) async fn head(
        &mut self,
        asked: Method,
        ticket: &Ticket<'_>,
    ) -> Result<Response, Fault> {
        poll_fn(|context| {
            self.poll_up(context)?;
            loop {
                let from = ready!(self.poll_down(Some(ticket), context))?;
                if self.download.buffer.len() == from {
                    let ended = io::ErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(Fault::Instance(ended.into())));
                }
                if let Some(response) = self.download.head(asked, self.client)? {
                    return Poll::Ready(Ok(response));
                }
            }
        })
        .await
    }

    /// Passes on an interim answer, which another one follows, to a client that knows of such.
    ///
    /// # Errors
    /// When the client does not take it, or what follows is malformed.
    pub(crate) async fn interim(
        &mut self,
        response: &Response,
        request: &Request,
    ) -> Result<Option<Response>, Fault> {
        let download = &mut *self.download;
        let length = head::rewrite(
            &mut download.buffer,
            response.length,
            &mut self.client.cuts,
            b"",
        );
        if request.modern {
            let bytes = download.buffer.get(..length).unwrap_or_default();
            let client = &mut *self.client;
            wire::write_all(&mut client.link, &mut client.stall, STEP_BOUND, bytes)
                .await
                .map_err(Fault::Client)?;
        }
        download.buffer.drain(..length);
        download.search = Search::default();
        download.head(request.method, self.client)
    }

    /// Takes what the instance had sent before it was lost, as far as that is there now.
    ///
    /// # Errors
    /// What the answer has wrong; less than all of it is no error.
    pub(crate) fn head_now(&mut self, asked: Method) -> Result<Option<Response>, Fault> {
        loop {
            match wire::read_now(self.instance, &mut self.download.buffer) {
                Ok(1..) => {}
                Ok(0) => return Ok(None),
                // Whatever else: there is no more.
                Err(_) => return Ok(None),
            }
            if let Some(response) = self.download.head(asked, self.client)? {
                return Ok(Some(response));
            }
        }
    }

    /// Begins an answer, with lines for the client at the end of its head.
    ///
    /// # Errors
    /// When its body is malformed.
    pub(crate) fn begin(&mut self, response: &Response, lines: &[u8]) -> Result<(), Fault> {
        self.download.begin(response, lines, self.client)
    }

    /// Passes the answer on until it is whole, and the rest of the request beside.
    ///
    /// # Errors
    /// Whatever broke first.
    pub(crate) async fn body(&mut self, ticket: Option<&Ticket<'_>>) -> Result<(), Fault> {
        poll_fn(|context| {
            self.poll_up(context)?;
            loop {
                if !self.download.is_held() {
                    if self.download.bulk.is_none() {
                        ready!(self.download.poll_flush(self.client, context))?;
                        if self.download.body.is_done() || self.download.ended {
                            return Poll::Ready(Ok(()));
                        }
                        self.download.restart();
                    }
                    let Ends {
                        client, instance, ..
                    } = self;
                    let bulk = self
                        .download
                        .poll_bulk(instance, client, Ask::Told, context);
                    if let (Some(ticket), Poll::Pending) = (ticket, &bulk) {
                        ticket.heard();
                    }
                    match bulk {
                        Poll::Ready(Some(passed)) => return Poll::Ready(passed),
                        Poll::Ready(None) => {}
                        Poll::Pending => {
                            return self.client.poll_gone(context).map(fault_of_client);
                        }
                    }
                }
                let from = ready!(self.poll_down(ticket, context))?;
                self.download.add(from)?;
            }
        })
        .await
    }

    /// Passes on what the instance had sent before it was lost, if that is all of the answer, or if
    /// the client has some of it already.
    ///
    /// # Errors
    /// When it is not all of the answer. The end of a lost instance's connection ends no answer.
    pub(crate) async fn body_now(&mut self) -> Result<(), Fault> {
        // What is in the pipe comes before what is still to be read.
        if self.download.bulk.is_some() {
            return poll_fn(|context| {
                let Ends {
                    client, instance, ..
                } = self;
                let bulk = self
                    .download
                    .poll_bulk(instance, client, Ask::Kernel, context);
                bulk.map(|passed| passed.unwrap_or(Err(Fault::Replaced)))
            })
            .await;
        }
        loop {
            while !self.download.body.is_done() && self.download.buffer.len() < HELD_MAX {
                let from = self.download.buffer.len();
                match wire::read_now(self.instance, &mut self.download.buffer) {
                    Ok(1..) => self.download.add(from)?,
                    Ok(0) | Err(_) => return Err(Fault::Replaced),
                }
            }
            let done = self.download.body.is_done();
            if !done && !self.download.begun {
                return Err(Fault::Replaced);
            }
            poll_fn(|context| self.download.poll_flush(self.client, context)).await?;
            if done {
                return Ok(());
            }
            self.download.restart();
        }
    }

    /// Writes what was read beyond the answer's head to the client, and what the client sent beyond
    /// its request to the instance: from here on both speak something else.
    ///
    /// # Errors
    /// When one of them does not take it.
    pub(crate) async fn switch(&mut self) -> Result<(), Fault> {
        let client = &mut *self.client;
        let bytes = self.download.buffer.as_slice();
        wire::write_all(&mut client.link, &mut client.stall, STEP_BOUND, bytes)
            .await
            .map_err(Fault::Client)?;
        let bytes = client.buffer.get(self.upload.sent..).unwrap_or_default();
        wire::write_all(self.instance, &mut client.stall, STEP_BOUND, bytes)
            .await
            .map_err(Fault::Instance)
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
