#!/usr/bin/env python3
"""The 500 texts that embeddings are compared over: 24 languages, and what tokenizers differ on.

    embedding_texts.py > texts.json
"""

import itertools
import json

# Beginnings and ends of sentences that go together in any pair.
LANGUAGES = {
    "English": (["The old ferry", "My neighbour's dog", "A short letter", "The last train"], ["waited by the river all night.", "arrived later than anyone had hoped.", "was forgotten after the storm.", "made the children laugh."]),
    "German": (["Die alte Fähre", "Der Hund meines Nachbarn", "Ein kurzer Brief", "Der letzte Zug"], ["wartete die ganze Nacht am Fluss.", "kam später als gehofft.", "wurde nach dem Sturm vergessen.", "brachte die Kinder zum Lachen über Äpfel und Öl."]),
    "French": (["Le vieux bac", "Le chien du voisin", "Une brève lettre", "Le dernier train"], ["attendait toute la nuit près du fleuve.", "est arrivé plus tard qu'espéré.", "fut oublié après l'orage, hélas.", "a fait rire les élèves à l'école."]),
    "Spanish": (["La vieja barca", "El perro del vecino", "Una carta breve", "El último tren"], ["esperó toda la noche junto al río.", "llegó más tarde de lo que se creía.", "quedó en el olvido después de la tormenta.", "¿hizo reír a los niños?"]),
    "Italian": (["Il vecchio traghetto", "Il cane del vicino", "Una breve lettera", "L'ultimo treno"], ["aspettò tutta la notte lungo il fiume.", "è arrivato più tardi del previsto.", "fu dimenticato dopo la tempesta.", "fece ridere i bambini, perché no?"]),
    "Portuguese": (["A velha balsa", "O cão do vizinho", "Uma carta curta", "O último comboio"], ["esperou a noite inteira junto ao rio.", "chegou mais tarde do que se esperava.", "foi esquecido depois da trovoada.", "fez rir as crianças no Verão."]),
    "Dutch": (["De oude veerboot", "De hond van de buurman", "Een korte brief", "De laatste trein"], ["wachtte de hele nacht bij de rivier.", "kwam later dan gehoopt.", "werd na de storm vergeten.", "maakte de kinderen aan het lachen."]),
    "Swedish": (["Den gamla färjan", "Grannens hund", "Ett kort brev", "Det sista tåget"], ["väntade vid ån hela natten.", "kom senare än någon hoppats.", "glömdes bort efter stormen.", "fick barnen att skratta."]),
    "Finnish": (["Vanha lautta", "Naapurin koira", "Lyhyt kirje", "Viimeinen juna"], ["odotti joen varrella koko yön.", "saapui myöhemmin kuin toivottiin.", "unohtui myrskyn jälkeen.", "sai lapset nauramaan ääneen."]),
    "Hungarian": (["Az öreg komp", "A szomszéd kutyája", "Egy rövid levél", "Az utolsó vonat"], ["egész éjjel a folyónál várt.", "később érkezett, mint remélték.", "a vihar után feledésbe merült.", "megnevettette a gyerekeket, őrült öröm."]),
    "Polish": (["Stary prom", "Pies sąsiada", "Krótki list", "Ostatni pociąg"], ["czekał całą noc nad rzeką.", "przybył później, niż się spodziewano.", "został zapomniany po burzy.", "rozśmieszył dzieci źdźbłem trawy."]),
    "Czech": (["Starý přívoz", "Sousedův pes", "Krátký dopis", "Poslední vlak"], ["čekal celou noc u řeky.", "přijel později, než se čekalo.", "byl po bouři zapomenut.", "rozesmál děti příšerně žluťoučký."]),
    "Turkish": (["Eski vapur", "Komşunun köpeği", "Kısa bir mektup", "Son tren"], ["bütün gece nehir kıyısında bekledi.", "umulandan daha geç geldi.", "fırtınadan sonra unutuldu.", "İstanbul'daki çocukları güldürdü."]),
    "Vietnamese": (["Chiếc phà cũ", "Con chó nhà bên", "Một bức thư ngắn", "Chuyến tàu cuối"], ["đã đợi bên sông suốt đêm.", "đến muộn hơn mọi người mong.", "bị lãng quên sau cơn bão.", "làm lũ trẻ bật cười."]),
    "Russian": (["Старый паром", "Соседский пёс", "Короткое письмо", "Последний поезд"], ["всю ночь ждал у реки.", "пришёл позже, чем надеялись.", "забыли после бури.", "рассмешил детей, ёлки-палки!"]),
    "Ukrainian": (["Старий пором", "Сусідський пес", "Короткий лист", "Останній потяг"], ["усю ніч чекав біля річки.", "прибув пізніше, ніж сподівалися.", "забули після бурі.", "розсмішив дітей у Києві, їй-богу."]),
    "Greek": (["Το παλιό φέρι", "Ο σκύλος του γείτονα", "Ένα σύντομο γράμμα", "Το τελευταίο τρένο"], ["περίμενε όλη νύχτα στο ποτάμι.", "έφτασε αργότερα απ' όσο ελπίζαμε.", "ξεχάστηκε μετά την καταιγίδα.", "έκανε τα παιδιά να γελάσουν."]),
    "Chinese": (["那艘旧渡船", "邻居家的狗", "一封短信", "最后一班火车"], ["整夜在河边等待。", "比大家期望的更晚到达。", "在暴风雨之后被遗忘了。", "让孩子们笑了起来。"]),
    "Japanese": (["古い渡し船は", "隣の犬は", "短い手紙は", "最終列車は"], ["一晩中川のそばで待っていた。", "思ったより遅く着いた。", "嵐のあと忘れられた。", "子どもたちをわらわせた。"]),
    "Korean": (["낡은 나룻배는", "이웃집 개는", "짧은 편지는", "마지막 기차는"], ["밤새 강가에서 기다렸다.", "바라던 것보다 늦게 도착했다.", "폭풍이 지난 뒤 잊혔다.", "아이들을 웃게 했다."]),
    "Arabic": (["العبّارة القديمة", "كلب الجار", "رسالة قصيرة", "القطار الأخير"], ["انتظر طوال الليل قرب النهر.", "وصل متأخرًا عمّا تمنّوا.", "نُسي بعد العاصفة.", "أضحك الأطفال."]),
    "Hebrew": (["המעבורת הישנה", "הכלב של השכן", "מכתב קצר", "הרכבת האחרונה"], ["חיכה כל הלילה ליד הנהר.", "הגיע מאוחר מן המקווה.", "נשכח אחרי הסערה.", "הצחיק את הילדים."]),
    "Hindi": (["पुरानी नाव", "पड़ोसी का कुत्ता", "एक छोटा पत्र", "आख़िरी रेलगाड़ी"], ["पूरी रात नदी के किनारे रुकी रही।", "उम्मीद से देर में आई।", "तूफ़ान के बाद भुला दिया गया।", "बच्चों को हँसा गया।"]),
    "Thai": (["เรือข้ามฟากลำเก่า", "สุนัขของเพื่อนบ้าน", "จดหมายสั้น ๆ", "รถไฟขบวนสุดท้าย"], ["รออยู่ริมแม่น้ำทั้งคืน", "มาถึงช้ากว่าที่หวังไว้", "ถูกลืมหลังพายุ", "ทำให้เด็ก ๆ หัวเราะ"]),
}

EDGES = [
    "a", "A", "?", ".", "0", "42", "3.14159", "-1e-9", "١٢٣", "Ⅷ", "½", "ﬁne ligature", "ﬀ", "ß", "ẞ", "İ", "ı", "ſ",
    "na\u00efve caf\u00e9", "nai\u0308ve cafe\u0301", "ÅNGSTRÖM", "x" * 99, "x" * 101, "https://example.org/a?b=c&d=%20#e",
    "user.name+tag@example.co.uk", "C:\\Users\\me\\file.txt", "/usr/share/doc/README.gz",
    "fn main() { println!(\"{}\", 1 + 1); }", "SELECT * FROM t WHERE a >= 'b' -- c", "{\"key\": [1, 2, {\"x\": null}]}",
    "<p class=\"x\">Hello &amp; bye</p>", "if a<b and c>d: return a**2", "#!/bin/sh\nset -eu\n", "α+β=γ", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
    "😀", "👩‍👩‍👧‍👦 family", "🇫🇷🇩🇪", "👍🏽 ok", "mixed 中文 and English", "日本語とEnglish混在", "русский + english", "㊗ ㈱ ㍿",
    "tab\tseparated\tvalues", "line one\nline two", "line one\r\nline two", "  leading and trailing  ", "many     spaces",
    "non\u00a0breaking", "thin\u2009space", "ideographic\u3000space", "zero\u200bwidth", "soft\u00adhyphen", "bidi\u202etext",
    "byte\ufefforder", "replacement \ufffd sign", "private \ue000 use", "bell\u0007 and null\u0001",
    "don't can't won't", "“curly” ‘quotes’", "em—dash, en–dash, minus−", "ellipsis…", "1,234,567.89", "$5.00 €5,00 £5 ¥500",
    "50% off!!!", "e.g. i.e. etc.", "Mr. O'Neil-Smith, Ph.D.", "COVID-19", "AT&T", "C++ C# F#", "node.js", "v1.2.3-rc.4",
    "[CLS]", "[SEP] inside", "[MASK] and [PAD] and [UNK]", "##ing", "▁underscore", "_snake_case_ CamelCase kebab-case",
    "H₂O and E=mc²", "\u2126 ohm \u03a9", "\u212a kelvin K", "ǆ Ǆ ǅ", "\ud55c\uae00 \u1112\u1161\u11ab\u1100\u1173\u11af", "\u304c \u304b\u3099", "\u0958 \u0915\u093c", "ال﷽", "a\u0300\u0301\u0302", "Z̸a̷l̶g̵o̴",
    "supercalifragilisticexpialidocious", "Donaudampfschifffahrtsgesellschaft", "Llanfairpwllgwyngyll", "antidisestablishmentarianism",
]

LONG = "The harbour master wrote down every boat that came in, its colour, its cargo and the weather of the day"


def main():
    texts = []
    for beginnings, ends in LANGUAGES.values():
        glue = "" if beginnings[0][0] > "\u2e80" or "\u0e00" <= beginnings[0][0] < "\u0e80" else " "
        texts += [beginning + glue + end for beginning, end in itertools.product(beginnings, ends)]
    texts += EDGES
    n = 1
    while len(texts) < 500:
        # Up to some 400 tokens, and over 512 in the last ones, which are cut.
        texts.append(", ".join([LONG] * n) + f", for {n} days.")
        n += 3
    assert len(texts) == 500 == len(set(texts)), (len(texts), len(set(texts)))
    print(json.dumps(texts, ensure_ascii=True, indent=0))


main()
