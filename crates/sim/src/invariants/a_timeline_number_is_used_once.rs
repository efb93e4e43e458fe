//! Two promotions never share a timeline number, since equal numbers hide divergence (A5).

use types::Timeline;

use crate::world::World;

const USED_ONCE: &str = "I2: a timeline number belongs to one promotion";

impl World {
    pub(crate) fn check_timeline_number(&mut self, node: usize) {
        let Some(instance) = &self.hosts[node].postgres else { return };
        let (timeline, term, restarted) = (instance.timeline, instance.term, instance.as_primary);
        if restarted || timeline == Timeline(1) {
            return;
        }
        if let Some((other, earlier)) = self.checks.promotions.insert(timeline, (node, term)) {
            let (one, two) = (&self.hosts[other].name, &self.hosts[node].name);
            let seen = format!(
                "timeline {timeline} was begun by {one} in term {earlier} and by {two} in {term}"
            );
            self.checks.violate(self.now, USED_ONCE, seen);
        }
    }
}
