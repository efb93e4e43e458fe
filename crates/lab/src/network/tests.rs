use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::*;

/// How long a packet that is not lost may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing has to come.
const QUIET: Duration = Duration::from_millis(300);

/// Two hosts with a socket on each. `None` where there can be no network: an ordinary user.
fn pair() -> Option<(Network, [UdpSocket; 2])> {
    let network = match Network::new(&["a", "b"]) {
        Err(NetworkError::NotRoot) => return None,
        network => network.expect("root can make one"),
    };
    let socket = |host| {
        let _inside = network.enter(host).expect("it is ours");
        UdpSocket::bind((address(host), 7000)).expect("the address is there")
    };
    let sockets = [socket(0), socket(1)];
    Some((network, sockets))
}

fn send(sockets: &[UdpSocket; 2], from: usize, text: u32) {
    let target = (address(1 - from), 7000);
    sockets[from].send_to(&text.to_be_bytes(), target).expect("the kernel takes it");
}

fn receive(socket: &UdpSocket, limit: Duration) -> Option<u32> {
    socket.set_read_timeout(Some(limit)).expect("it is not zero");
    let mut buffer = [0; 4];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    (length == 4).then(|| u32::from_be_bytes(buffer))
}

#[test]
fn packets_pass_are_cut_each_way_and_pass_again() {
    let Some((network, sockets)) = pair() else { return };
    send(&sockets, 0, 1);
    assert_eq!(receive(&sockets[1], SOON), Some(1));
    network.apply(Rule::around(0, Way::Out, &[], Effect::Drop));
    send(&sockets, 0, 2);
    send(&sockets, 1, 3);
    assert_eq!(receive(&sockets[0], SOON), Some(3), "the other way is open");
    assert_eq!(receive(&sockets[1], QUIET), None);
    network.apply(Rule::around(0, Way::In, &[], Effect::Drop));
    send(&sockets, 1, 4);
    assert_eq!(receive(&sockets[0], QUIET), None);
    network.heal();
    send(&sockets, 0, 5);
    send(&sockets, 1, 6);
    assert_eq!(receive(&sockets[1], SOON), Some(5), "what was cut is lost");
    assert_eq!(receive(&sockets[0], SOON), Some(6));
}

#[test]
fn some_packets_are_lost_and_others_come_late() {
    let Some((network, sockets)) = pair() else { return };
    network.apply(Rule::around(0, Way::Out, &[], Effect::Lose { percent: 50 }));
    let all = 400;
    let mut came = 0;
    for number in 0..all {
        send(&sockets, 0, number);
        // Now and then the receiver takes what is there: its buffer is no part of this.
        if number % 50 == 49 {
            while receive(&sockets[1], QUIET).is_some() {
                came += 1;
            }
        }
    }
    // Fewer than a hundred or more than three hundred of four hundred: never by chance.
    assert!((100..=300).contains(&came), "{came} of {all} came");
    network.heal();
    let delay = Duration::from_millis(200);
    network.apply(Rule::around(0, Way::Out, &[], Effect::Delay(delay)));
    let begun = Instant::now();
    send(&sockets, 0, 1000);
    send(&sockets, 0, 1001);
    assert_eq!(receive(&sockets[1], SOON), Some(1000));
    assert!(begun.elapsed() >= delay);
    assert_eq!(receive(&sockets[1], SOON), Some(1001), "in their order");
}

#[test]
fn nothing_is_left_of_a_network_that_was_dropped_by_a_panic() {
    let Some((network, sockets)) = pair() else { return };
    drop(sockets);
    let path = network.namespaces[0].path();
    assert!(path.exists());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _network = network;
        panic!("the test's own");
    }));
    assert!(panicked.is_err());
    assert!(!path.exists());
}

#[test]
fn leftovers_of_a_process_that_is_gone_are_removed_and_others_are_not() {
    let Some((network, _)) = pair() else { return };
    let mut child = Command::new("true").spawn().expect("true is there");
    let name = format!("{PREFIX}{}-0-left", child.id());
    child.wait().expect("it is our child");
    std::mem::forget(Namespace::new(name.clone()).expect("root can make one"));
    sweep();
    assert!(!Path::new(NAMES).join(name).exists());
    assert!(network.namespaces[0].path().exists());
}

#[test]
fn names_tell_whose_they_are() {
    assert_eq!(owner("pgherd-lab-17-0-node1"), Some(17));
    assert_eq!(owner("pgherd-labour"), None);
    assert_eq!(owner("docker"), None);
}
