#![allow(clippy::unwrap_used, missing_docs)]
mod common;
use common::{Node, bin_dirs};
use postgres::*;
use std::time::Instant;
use types::*;
#[tokio::test]
async fn timing() {
    let bin = bin_dirs().remove(0);
    let (a, b) = (Node::new("a", &bin), Node::new("b", &bin));
    let t = Instant::now();
    a.instance.initdb().await.unwrap();
    println!("initdb {:?}", t.elapsed());
    let t = Instant::now();
    a.instance.start(StartAs::Primary, Millis(30000)).await.unwrap();
    println!("start {:?}", t.elapsed());
    let t = Instant::now();
    b.instance.clone_from(&a.upstream(), |_| {}).await.unwrap();
    println!("clone {:?}", t.elapsed());
    let upstream = Some(a.upstream());
    b.instance.start(StartAs::Standby { upstream }, Millis(30000)).await.unwrap();
    for _ in 0..3 {
        let t = Instant::now();
        a.sql("select 1").await;
        println!("connect+query {:?}", t.elapsed());
    }
    for _ in 0..5 {
        let t = Instant::now();
        b.instance.observe().await;
        println!("observe {:?}", t.elapsed());
    }
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        let t = Instant::now();
        b.instance.stop_receiving(Millis(5000)).await.unwrap();
        println!("stop_receiving {:?}", t.elapsed());
        let t = Instant::now();
        b.instance.follow(Some(&a.upstream())).await.unwrap();
        println!("follow {:?}", t.elapsed());
    }
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    b.instance.stop_receiving(Millis(5000)).await.unwrap();
    let t = Instant::now();
    let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
    b.instance.promote(plan, Millis(5000)).await.unwrap();
    println!("promote {:?}", t.elapsed());
    let t = Instant::now();
    b.instance.confirm_write(Millis(5000)).await.unwrap();
    println!("confirm {:?}", t.elapsed());
}
