//! What becomes of bytes, ends and resets on an open connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use crate::world::{World, accept, assert_reset, eventually, listener, patient, reset};

/// A connection through the relay: the client's and the endpoint's side.
fn pair() -> (World, TcpStream, TcpStream) {
    let (listener, address) = listener();
    let world = World::new(&[address]);
    let client = world.connect();
    let endpoint = accept(&listener);
    (world, client, endpoint)
}

fn read(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_side_that_speaks_first_may_be_either() {
    let (_world, mut client, mut endpoint) = pair();
    endpoint.write_all(b"220 hello").unwrap();
    assert_eq!(read(&mut client, 9), b"220 hello");
    let (_world, mut client, mut endpoint) = pair();
    client.write_all(b"GET /").unwrap();
    assert_eq!(read(&mut endpoint, 5), b"GET /");
}

#[test]
fn an_end_is_passed_on_and_the_other_direction_goes_on() {
    let (world, mut client, mut endpoint) = pair();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut endpoint), b"question");
    for _ in 0..3 {
        endpoint.write_all(b"answer").unwrap();
        assert_eq!(read(&mut client, 6), b"answer");
    }
    drop(endpoint);
    assert_eq!(rest(&mut client), b"");
    world.reaches("the connection has ended", |counts| counts.active() == 0);
    let counts = world.counts();
    assert_eq!((counts.opened, counts.received, counts.sent), (1, 8, 18));

    let (_world, mut client, mut endpoint) = pair();
    endpoint.write_all(b"bye").unwrap();
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), b"bye");
    client.write_all(b"and one more thing").unwrap();
    drop(client);
    assert_eq!(rest(&mut endpoint), b"and one more thing");
}

#[test]
fn a_reset_is_passed_on_as_a_reset_both_ways() {
    let (world, client, mut endpoint) = pair();
    reset(client);
    assert_reset(&mut endpoint);
    world.reaches("the connection has ended", |counts| counts.active() == 0);

    let (_world, mut client, endpoint) = pair();
    reset(endpoint);
    assert_reset(&mut client);
}

#[test]
fn a_reset_after_an_end_is_passed_on_although_nothing_is_read_any_more() {
    let (world, client, mut endpoint) = pair();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut endpoint), b"");
    reset(client);
    world.reaches("the connection has ended", |counts| counts.active() == 0);
    eventually("the endpoint meets the reset", || match endpoint.write(b"x") {
        Ok(_) => Err("written".into()),
        Err(_) => Ok(()),
    });

    let (_world, mut client, endpoint) = pair();
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), b"");
    reset(endpoint);
    eventually("the client meets the reset", || match client.write(b"x") {
        Ok(_) => Err("written".into()),
        Err(_) => Ok(()),
    });
}

#[test]
fn what_an_endpoint_said_before_its_reset_arrives_before_the_reset() {
    // Closing with unread bytes resets, as servers do that answer before they have read everything.
    let (_world, mut client, mut endpoint) = pair();
    client.write_all(&[7; 100_000]).unwrap();
    assert_eq!(read(&mut endpoint, 1), [7]);
    endpoint.write_all(b"413 too large").unwrap();
    assert_eq!(read(&mut client, 13), b"413 too large");
    drop(endpoint);
    assert_reset(&mut client);
}

#[test]
fn a_reset_reaches_a_side_that_does_not_read() {
    let (world, mut client, endpoint) = pair();
    fill(&mut client);
    reset(client);
    world.reaches("the connection has ended", |counts| counts.active() == 0);
    let mut endpoint = endpoint;
    assert_reset(&mut endpoint);
}

/// Writes until nothing more is taken; returns how much was.
fn fill(stream: &mut TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut written, mut idle) = (0, 0);
    // What is in flight is taken within moments; a while without progress means that all buffers are full.
    while idle < 200 {
        match stream.write(&[0; 65_536]) {
            Ok(n) => (written, idle) = (written + n, 0),
            Err(_) => {
                idle += 1;
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
    stream.set_nonblocking(false).unwrap();
    written
}

#[test]
fn a_slow_reader_holds_the_writer_back_and_nothing_is_lost() {
    let (world, mut client, mut endpoint) = pair();
    let written = fill(&mut client);
    // Kernel buffers on both sides (at most some MB each) and at most a pipe or a buffer here.
    assert!(written < 32 << 20, "{written} bytes were taken without a reader");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut endpoint).len(), written);
    drop((client, endpoint));
    world.reaches("all was counted", |counts| counts.received == written as u64 && counts.active() == 0);
}

/// Bytes that differ along a stream and between streams.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Writes `total` bytes of noise in pieces of all sizes, and ends.
fn write_noise(mut stream: TcpStream, seed: u64, total: usize) {
    let (mut noise, mut sizes) = (Noise(seed), Noise(seed ^ 0xabcdef));
    let mut left = total;
    let mut bytes = vec![0; 1 << 18];
    while left > 0 {
        let scale = 1 << (sizes.next() % 19);
        let n = (sizes.next() as usize % scale + 1).next_multiple_of(8).min(left);
        noise.fill(&mut bytes[..n]);
        stream.write_all(&bytes[..n]).unwrap();
        left -= n;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads noise up to its end in pieces of all sizes, pausing now and then.
fn read_noise(mut stream: TcpStream, seed: u64, total: usize) {
    let (mut noise, mut sizes) = (Noise(seed), Noise(seed ^ 0x123456));
    let (mut bytes, mut expected) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    let mut read = 0;
    loop {
        if sizes.next().is_multiple_of(64) {
            thread::sleep(std::time::Duration::from_millis(sizes.next() % 8));
        }
        let scale = 1 << (sizes.next() % 19);
        let n = (sizes.next() as usize % scale + 1).next_multiple_of(8).min(bytes.len()).min(total - read);
        if n == 0 {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "nothing follows");
            return;
        }
        stream.read_exact(&mut bytes[..n]).unwrap();
        noise.fill(&mut expected[..n]);
        assert!(bytes[..n] == expected[..n], "bytes differ within {n} after {read}");
        read += n;
    }
}

#[test]
fn large_transfers_both_ways_arrive_whole_whoever_is_slow_and_whoever_ends_first() {
    let (listener, address) = listener();
    let world = World::new(&[address]);
    let mut choices = Noise(0x9e37_79b9_7f4a_7c15);
    let mut threads = Vec::new();
    let mut totals = (0, 0);
    for _ in 0..12 {
        let client = world.connect();
        let endpoint = accept(&listener);
        // Some are short, so that one end comes long before the other; all are whole words.
        let (up, down) = (choices.next() as usize % (24 << 20), choices.next() as usize % (24 << 20));
        let (up, down) = (up & !7, if choices.next().is_multiple_of(3) { 0 } else { down & !7 });
        let (seed_up, seed_down) = (choices.next(), choices.next());
        totals = (totals.0 + up as u64, totals.1 + down as u64);
        let streams = [&client, &endpoint].map(|stream| {
            patient(stream);
            stream.try_clone().unwrap()
        });
        let [client_too, endpoint_too] = streams;
        threads.push(thread::spawn(move || write_noise(client, seed_up, up)));
        threads.push(thread::spawn(move || write_noise(endpoint, seed_down, down)));
        threads.push(thread::spawn(move || read_noise(endpoint_too, seed_up, up)));
        threads.push(thread::spawn(move || read_noise(client_too, seed_down, down)));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.reaches("all connections have ended", |counts| counts.active() == 0);
    let counts = world.counts();
    assert_eq!((counts.received, counts.sent), totals);
}
