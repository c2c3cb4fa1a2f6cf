//! The words that opt out and in. Beyond English they are practice gathered from open-source lists and
//! local habit (`UNREG` in Indonesia, `RET` in Turkey, `BAJA` in Spain), not a standard, so every policy
//! can choose languages and add words. A keyword is the whole message, never a part of one.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::{
    decision::{OptOutDirection, OptOutScope},
    fold::{fold, fold_candidate},
    policy::OptOutPolicy,
};

/// A language with built-in keywords.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    /// English.
    En,
    /// Arabic.
    Ar,
    /// Spanish.
    Es,
    /// Portuguese.
    Pt,
    /// French.
    Fr,
    /// German.
    De,
    /// Hindi.
    Hi,
    /// Urdu.
    Ur,
    /// Turkish.
    Tr,
    /// Indonesian.
    Id,
}

impl Language {
    /// Every language, in the order in which policies show them.
    pub const ALL: [Self; 10] =
        [Self::En, Self::Ar, Self::Es, Self::Pt, Self::Fr, Self::De, Self::Hi, Self::Ur, Self::Tr, Self::Id];

    /// The ISO 639-1 code.
    pub const fn code(self) -> &'static str {
        self.words().code
    }

    /// The language of an ISO 639-1 code.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.code() == code)
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }

    const fn words(self) -> &'static Words {
        match self {
            Self::En => &EN,
            Self::Ar => &AR,
            Self::Es => &ES,
            Self::Pt => &PT,
            Self::Fr => &FR,
            Self::De => &DE,
            Self::Hi => &HI,
            Self::Ur => &UR,
            Self::Tr => &TR,
            Self::Id => &ID,
        }
    }
}

/// The words of one language, as people write them. Weak ones are real words that also answer other
/// questions; they count only where a policy says so.
struct Words {
    code: &'static str,
    opt_out: &'static [&'static str],
    opt_out_marketing: &'static [&'static str],
    opt_out_weak: &'static [&'static str],
    opt_in: &'static [&'static str],
    opt_in_weak: &'static [&'static str],
}

/// `STOP` and its kin are the words of US carriers (CTIA; Twilio's defaults). The labels with `from` and
/// `promotions` are those of template buttons (Meta, marketing templates).
const EN: Words = Words {
    code: "en",
    opt_out: &[
        "stop",
        "stopall",
        "stop all",
        "unsubscribe",
        "unsubscribe from all",
        "optout",
        "opt out",
        "unsub",
        "remove me",
        "revoke",
    ],
    opt_out_marketing: &["unsubscribe from promos", "unsubscribe from promotions", "stop promotions"],
    opt_out_weak: &["cancel", "end", "quit", "remove", "no more", "leave"],
    opt_in: &["start", "unstop", "subscribe", "optin", "opt in", "resubscribe"],
    opt_in_weak: &["yes"],
};

const AR: Words = Words {
    code: "ar",
    opt_out: &[
        "إيقاف",
        "ايقاف الرسائل",
        "أوقف",
        "أوقف الرسائل",
        "إلغاء الاشتراك",
        "الغاء اشتراك",
        "إلغاء الإشتراك",
        "لا ترسل",
        "لا تراسلني",
    ],
    opt_out_marketing: &[],
    opt_out_weak: &["توقف", "الغاء", "وقف", "كفى", "لا", "لا أريد"],
    opt_in: &["ابدأ", "اشتراك", "اشترك", "تفعيل", "استئناف"],
    opt_in_weak: &[],
};

const ES: Words = Words {
    code: "es",
    opt_out: &[
        "baja",
        "darme de baja",
        "dar de baja",
        "cancelar suscripción",
        "desuscribir",
        "detener mensajes",
        "no enviar más",
    ],
    opt_out_marketing: &[],
    opt_out_weak: &["parar", "alto", "cancelar", "detener", "basta", "no más"],
    opt_in: &["alta", "suscribir", "suscribirme", "iniciar", "reanudar"],
    opt_in_weak: &[],
};

const PT: Words = Words {
    code: "pt",
    opt_out: &[
        "sair",
        "descadastrar",
        "cancelar inscrição",
        "remover",
        "parar mensagens",
        "pare de enviar",
        "não quero receber",
    ],
    opt_out_marketing: &[],
    opt_out_weak: &["parar", "pare", "cancelar", "não"],
    opt_in: &["entrar", "voltar", "inscrever", "cadastrar", "reativar"],
    opt_in_weak: &[],
};

const FR: Words = Words {
    code: "fr",
    opt_out: &[
        "désabonner",
        "se désabonner",
        "désinscrire",
        "désinscription",
        "arrêt",
        "stop pub",
        "ne plus recevoir",
    ],
    opt_out_marketing: &[],
    opt_out_weak: &["arrêter", "annuler", "fin", "non"],
    opt_in: &["abonner", "s'abonner", "réabonner", "reprendre", "démarrer"],
    opt_in_weak: &[],
};

const DE: Words = Words {
    code: "de",
    opt_out: &["abmelden", "abbestellen", "austragen", "keine werbung", "keine nachrichten"],
    opt_out_marketing: &[],
    opt_out_weak: &["stopp", "kündigen", "ende", "abbrechen", "nein"],
    opt_in: &["anmelden", "abonnieren", "eintragen"],
    opt_in_weak: &[],
};

const HI: Words = Words {
    code: "hi",
    opt_out: &["रोकें", "रोको", "बंद करें", "बंद करो", "सदस्यता रद्द", "सदस्यता समाप्त", "band karo", "mat bhejo"],
    opt_out_marketing: &[],
    opt_out_weak: &["रद्द", "नहीं", "बस"],
    opt_in: &["शुरू करें", "शुरू", "चालू करें", "shuru"],
    opt_in_weak: &[],
};

const UR: Words = Words {
    code: "ur",
    opt_out: &["بند کریں", "بند کرو", "روکیں", "سبسکرپشن ختم کریں", "پیغام نہ بھیجیں"],
    opt_out_marketing: &[],
    opt_out_weak: &["ختم", "منسوخ", "نہیں"],
    opt_in: &["شروع کریں", "شروع", "سبسکرائب"],
    opt_in_weak: &[],
};

/// `çık` ("leave") alone is what `ÇIK` on a flyer asks for, and answers no question as `hayır` ("no") does:
/// lists disagree, and whoever is left alone by mistake loses less than whoever is not.
const TR: Words = Words {
    code: "tr",
    opt_out: &["iptal", "abonelikten çık", "çık", "çıkış", "ret", "red", "durdur", "üyelik iptal"],
    opt_out_marketing: &[],
    opt_out_weak: &["dur", "hayır"],
    opt_in: &["başlat", "abone ol", "onay", "kabul"],
    opt_in_weak: &[],
};

const ID: Words = Words {
    code: "id",
    opt_out: &["berhenti", "berhenti berlangganan", "unreg", "batal langganan", "stop kirim"],
    opt_out_marketing: &[],
    opt_out_weak: &["batal", "keluar", "tidak"],
    opt_in: &["mulai", "daftar", "langganan", "reg", "lanjutkan"],
    opt_in_weak: &[],
};

/// In which languages a folded word means what; bits of [`Language`].
#[derive(Default)]
struct BuiltIn {
    opt_out: u16,
    opt_out_marketing: u16,
    opt_out_weak: u16,
    opt_in: u16,
    opt_in_weak: u16,
}

/// Every built-in word of every language, folded: compiled once, shared by all policies.
static BUILT_IN: LazyLock<HashMap<String, BuiltIn>> = LazyLock::new(|| {
    let mut words: HashMap<String, BuiltIn> = HashMap::new();
    for language in Language::ALL {
        let bit = language.bit();
        let mut add = |list: &[&str], field: fn(&mut BuiltIn) -> &mut u16| {
            for word in list {
                *field(words.entry(fold(word)).or_default()) |= bit;
            }
        };
        let lists = language.words();
        add(lists.opt_out, |entry| &mut entry.opt_out);
        add(lists.opt_out_marketing, |entry| &mut entry.opt_out_marketing);
        add(lists.opt_out_weak, |entry| &mut entry.opt_out_weak);
        add(lists.opt_in, |entry| &mut entry.opt_in);
        add(lists.opt_in_weak, |entry| &mut entry.opt_in_weak);
    }
    words
});

/// A text that is a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordMatch {
    /// What it asks for.
    pub direction: OptOutDirection,
    /// How much it covers: everything that is not essential, or, for the labels of some buttons,
    /// marketing.
    pub scope: OptOutScope,
    /// The keyword, folded.
    pub keyword: String,
}

/// The keywords of one policy. Costs a few words of memory plus the policy's own keywords: the built-in
/// ones are shared.
#[derive(Debug)]
pub struct KeywordSet {
    enabled: bool,
    languages: u16,
    weak: bool,
    custom: HashMap<Box<str>, OptOutDirection>,
}

/// The keywords of the default policy.
static DEFAULT: LazyLock<Arc<KeywordSet>> =
    LazyLock::new(|| Arc::new(KeywordSet::compile(&OptOutPolicy::default())));

impl KeywordSet {
    /// The keywords that count under a policy. The default policy always gets the same shared set.
    pub fn of(policy: &OptOutPolicy) -> Arc<Self> {
        if *policy == OptOutPolicy::default() {
            Arc::clone(&DEFAULT)
        } else {
            Arc::new(Self::compile(policy))
        }
    }

    fn compile(policy: &OptOutPolicy) -> Self {
        let opt_in = policy.opt_in_keywords.iter().map(|word| (word, OptOutDirection::OptIn));
        // Opt-outs come last, so that they win where a word is in both lists.
        let opt_out = policy.opt_out_keywords.iter().map(|word| (word, OptOutDirection::OptOut));
        Self {
            enabled: policy.keywords_enabled,
            languages: policy.languages.iter().fold(0, |bits, language| bits | language.bit()),
            weak: policy.weak_keywords,
            custom: opt_in
                .chain(opt_out)
                .filter_map(|(word, direction)| Some((fold_candidate(word)?.into_boxed_str(), direction)))
                .collect(),
        }
    }

    /// What the whole text means as a keyword; none when it is none. A word that means both, in different
    /// languages or through a policy's own list, opts out, and the wider scope counts.
    pub fn lookup(&self, text: &str) -> Option<KeywordMatch> {
        if !self.enabled {
            return None;
        }
        let keyword = fold_candidate(text)?;
        let (direction, scope) = self.meaning(&keyword)?;
        Some(KeywordMatch { direction, scope, keyword })
    }

    fn meaning(&self, folded: &str) -> Option<(OptOutDirection, OptOutScope)> {
        let custom = self.custom.get(folded).copied();
        let weak = if self.weak { self.languages } else { 0 };
        let has = |strong: fn(&BuiltIn) -> u16, weakly: fn(&BuiltIn) -> u16| {
            BUILT_IN
                .get(folded)
                .is_some_and(|word| strong(word) & self.languages != 0 || weakly(word) & weak != 0)
        };
        if custom == Some(OptOutDirection::OptOut) || has(|word| word.opt_out, |word| word.opt_out_weak) {
            Some((OptOutDirection::OptOut, OptOutScope::NonEssential))
        } else if has(|word| word.opt_out_marketing, |_| 0) {
            Some((OptOutDirection::OptOut, OptOutScope::Marketing))
        } else if custom.is_some() || has(|word| word.opt_in, |word| word.opt_in_weak) {
            Some((OptOutDirection::OptIn, OptOutScope::NonEssential))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_set() -> Arc<KeywordSet> {
        KeywordSet::of(&OptOutPolicy::default())
    }

    fn direction(set: &KeywordSet, text: &str) -> Option<OptOutDirection> {
        set.lookup(text).map(|found| found.direction)
    }

    /// Every strong word of every language counts by default, in every case; no weak word does.
    #[test]
    fn strong_words_count_and_weak_ones_do_not() {
        let set = default_set();
        for language in Language::ALL {
            let words = language.words();
            for word in words.opt_out.iter().chain(words.opt_out_marketing) {
                assert_eq!(direction(&set, word), Some(OptOutDirection::OptOut), "{word}");
                assert_eq!(direction(&set, &word.to_uppercase()), Some(OptOutDirection::OptOut), "{word}");
            }
            for word in words.opt_in {
                assert_eq!(direction(&set, word), Some(OptOutDirection::OptIn), "{word}");
            }
            for word in words.opt_out_weak.iter().chain(words.opt_in_weak) {
                assert_eq!(direction(&set, word), None, "{word}");
            }
        }
    }

    /// The examples of the provider notes hit or miss as written there.
    #[test]
    fn documented_examples_hit_or_miss() {
        let set = default_set();
        for text in [
            "🛑 STOP!!!",
            "S\u{200b}TOP",
            "ＳＴＯＰ",
            "OPT_OUT",
            "opt-out",
            "إِلْغَاءُ الاِشْتِرَاكِ",
            "الغاء الأشتراك",
            "إيقافـــ",
            "\u{202b}إيقاف\u{202c}",
            "إيقاف الرسائل",
            "İPTAL",
            "ÇIK",
            "çık",
            "ARRÊT",
            "Désabonner",
            "रोकें",
            "بند کریں",
            "بند كريں",
        ] {
            assert_eq!(direction(&set, text), Some(OptOutDirection::OptOut), "{text}");
        }
        for text in [
            "don't stop",
            "stop it, I like it",
            "وقف السيارة عند المحل؟",
            "أريد إيقاف الرسائل غدًا وليس الآن",
            "",
            "please stop",
            "stopped",
            "bus stop",
            "🛑",
        ] {
            assert_eq!(set.lookup(text), None, "{text}");
        }
    }

    fn weak_set() -> Arc<KeywordSet> {
        KeywordSet::of(&OptOutPolicy { weak_keywords: true, ..OptOutPolicy::default() })
    }

    /// Weak words count when the policy says so.
    #[test]
    fn weak_words_can_be_switched_on() {
        let set = weak_set();
        for language in Language::ALL {
            for word in language.words().opt_out_weak {
                assert_eq!(direction(&set, word), Some(OptOutDirection::OptOut), "{word}");
            }
        }
        assert_eq!(direction(&set, "Yes!"), Some(OptOutDirection::OptIn));
    }

    /// Only chosen languages count, and nothing does when keywords are off.
    #[test]
    fn policy_chooses_languages() {
        let spanish =
            KeywordSet::of(&OptOutPolicy { languages: vec![Language::Es], ..OptOutPolicy::default() });
        assert_eq!(direction(&spanish, "Baja"), Some(OptOutDirection::OptOut));
        assert_eq!(spanish.lookup("stop"), None);
        let off = KeywordSet::of(&OptOutPolicy { keywords_enabled: false, ..OptOutPolicy::default() });
        assert_eq!(off.lookup("stop"), None);
    }

    /// A policy's own words count after folding, and an opt-out wins over an opt-in of the same word.
    #[test]
    fn own_words_count_and_opt_out_wins() {
        let set = KeywordSet::of(&OptOutPolicy {
            opt_out_keywords: vec!["Genug!".into(), "Hallo".into(), "START".into()],
            opt_in_keywords: vec!["hallo".into(), "Wieder da".into(), "stop".into()],
            ..OptOutPolicy::default()
        });
        for (text, expected) in [
            ("genug", OptOutDirection::OptOut),
            ("HALLO", OptOutDirection::OptOut),
            ("start", OptOutDirection::OptOut),
            ("stop", OptOutDirection::OptOut),
            ("wieder-da", OptOutDirection::OptIn),
        ] {
            assert_eq!(direction(&set, text), Some(expected), "{text}");
        }
    }

    /// The labels of promotion buttons stop marketing only; everything else stops all that is not
    /// essential. The keyword is given folded.
    #[test]
    fn promotion_buttons_cover_marketing() {
        let set = default_set();
        let found = set.lookup("Unsubscribe from Promos").unwrap();
        assert_eq!((found.scope, &*found.keyword), (OptOutScope::Marketing, "unsubscribe from promos"));
        assert_eq!(set.lookup("Unsubscribe from All").unwrap().scope, OptOutScope::NonEssential);
        assert_eq!(set.lookup("🛑 STOP!!!").unwrap().keyword, "stop");
    }

    /// No strong word of one language takes back what it means in another, and the default set is shared.
    #[test]
    fn built_in_words_do_not_contradict() {
        for (word, built_in) in BUILT_IN.iter() {
            let out = built_in.opt_out | built_in.opt_out_marketing | built_in.opt_out_weak;
            assert!(out == 0 || (built_in.opt_in | built_in.opt_in_weak) == 0, "{word}");
            assert_eq!(fold_candidate(word).as_ref(), Some(word), "a built-in word has to be findable");
        }
        assert!(Arc::ptr_eq(&default_set(), &default_set()));
    }
}
