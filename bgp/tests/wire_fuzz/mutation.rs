//! What is done to a well-formed message: anything to its octets, or one capability or attribute is changed and all lengths fit again, which
//! comes to the decoders deep inside.

use super::Random;

pub(super) fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut message = seeds[random.below(seeds.len())].clone();
    if random.one_in(2) {
        change_one_value(&mut message, random);
        if random.one_in(2) {
            return message;
        }
    }
    for _ in 0..random.below(5) {
        mutate(&mut message, &seeds[random.below(seeds.len())], random);
    }
    // Mostly the header is right, so that what is inside is reached.
    if !random.one_in(16) && message.len() >= 19 {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
        message[..16].fill(0xff);
        message[16..18].copy_from_slice(&length);
    }
    message
}

fn mutate(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if message.is_empty() {
        return;
    }
    // Past the header as a rule.
    let start = if random.one_in(16) {
        0
    } else {
        19.min(message.len() - 1)
    };
    let at = start + random.below(message.len() - start);
    match random.below(8) {
        0 => message[at] ^= 1 << random.below(8),
        1 => message[at] = random.octet(),
        2 => message[at] = [0, 1, 2, 4, 14, 15, 16, 32, 33, 127, 128, 129, 255][random.below(13)],
        3 => message[at] = message[at].wrapping_add([1, 255][random.below(2)]),
        4 => message.truncate(at),
        5 => message.insert(at, random.octet()),
        6 => {
            message.remove(at);
        }
        _ => {
            let from = random.below(other.len());
            let count = random.below(40).min(other.len() - from);
            message.splice(at..at, other[from..from + count].iter().copied());
        }
    }
}

/// Changes the value of one capability of an OPEN, or attribute of an UPDATE. The message must be well-formed.
fn change_one_value(message: &mut Vec<u8>, random: &mut Random) {
    match message[18] {
        // Extended optional parameters (RFC 9072) are left alone.
        1 if message[28] != 255 && message[29] == 2 => {
            let mut list = items(&message[31..], Form::Capability);
            change(&mut list, random);
            let list = octets(&list, Form::Capability);
            let Ok(length) = u8::try_from(list.len() + 2) else {
                return;
            };
            message.splice(28.., [length, 2, length - 2].into_iter().chain(list));
        }
        2 => {
            let field = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
            let at = 21 + field(19);
            let end = at + 2 + field(at);
            let mut list = items(&message[at + 2..end], Form::Attribute);
            change(&mut list, random);
            let list = octets(&list, Form::Attribute);
            let length = u16::try_from(list.len()).unwrap().to_be_bytes();
            message.splice(at..end, length.into_iter().chain(list));
        }
        _ => return,
    }
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    message[16..18].copy_from_slice(&length);
}

/// How an item of a list begins.
#[derive(Clone, Copy)]
enum Form {
    /// Code, and a length of one octet.
    Capability,
    /// Flags and type, and a length of one octet or two.
    Attribute,
}

/// The flags of an attribute with a length of two octets.
const EXTENDED_LENGTH: u8 = 0x10;

type Item = (Vec<u8>, Vec<u8>);

fn items(mut list: &[u8], form: Form) -> Vec<Item> {
    let mut items = Vec::new();
    while !list.is_empty() {
        let (head, length, rest) = match (form, list) {
            (Form::Capability, [code, length, rest @ ..]) => (vec![*code], usize::from(*length), rest),
            (Form::Attribute, [flags, code, high, low, rest @ ..]) if flags & EXTENDED_LENGTH != 0 => (
                vec![*flags, *code],
                usize::from(u16::from_be_bytes([*high, *low])),
                rest,
            ),
            (Form::Attribute, [flags, code, length, rest @ ..]) => {
                (vec![*flags, *code], usize::from(*length), rest)
            }
            _ => panic!("not well-formed: {list:02x?}"),
        };
        items.push((head, rest[..length].to_vec()));
        list = &rest[length..];
    }
    items
}

fn octets(items: &[Item], form: Form) -> Vec<u8> {
    let item = |(head, value): &Item| match form {
        Form::Capability => {
            let length = u8::try_from(value.len()).unwrap();
            [head.as_slice(), &[length], value].concat()
        }
        Form::Attribute => {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            [&[head[0] | EXTENDED_LENGTH, head[1]], length.as_slice(), value].concat()
        }
    };
    items.iter().flat_map(item).collect()
}

fn change(items: &mut Vec<Item>, random: &mut Random) {
    if items.is_empty() {
        return;
    }
    let at = random.below(items.len());
    let repeated = items[at].clone();
    let (head, value) = &mut items[at];
    match random.below(7) {
        0 => value.truncate(random.below(value.len() + 1)),
        1 if value.len() < 250 => value.extend((0..=random.below(4)).map(|_| random.octet())),
        2 => head[0] ^= 1 << random.below(8),
        3 => items.push(repeated),
        4 => {
            items.remove(at);
        }
        _ if value.is_empty() => value.push(random.octet()),
        _ => {
            let at = random.below(value.len());
            value[at] = [random.octet(), 0, 1, 255][random.below(4)];
        }
    }
}
