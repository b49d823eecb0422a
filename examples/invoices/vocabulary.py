"""The words that invoices are made of, and which of them are kept out of training.

Everything that says "held out" here is refused by the training side of the generator: held-out names are the
distinctive words of vendors that training never sees, held-out labels and separators are phrasings made of
parts that training does see, arranged as training never arranges them.
"""

import re
from typing import Final


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


SURNAMES: Final = _split(
    "Adler Ashford Baird Barlow Becker Bell Benson Berg Blanc Bright Brooks Carver Castillo Chandler "
    "Cole Conti Cooper Costa Cross Dahl Dalton Davies Dietrich Drake Duarte Ekman Ellis Farrow Ferrari "
    "Fischer Fletcher Fontaine Frost Gallo Garner Glover Graham Gray Greco Hale Hansen Harper Hayes "
    "Holm Howell Hughes Ibsen Jansen Jensen Keller Kemp Kowal Kramer Lambert Larsen Lehmann Lopez Lund "
    "Mancini Marsh Mercer Meyer Miller Moreau Morgan Nielsen Noble North Novak Olsen Orlando Palmer "
    "Parker Perez Porter Price Quinn Ramos Reed Reyes Ricci Rivers Romano Rossi Russo Schmidt Sharp "
    "Silva Singh Stone Swift Taylor Thorn Turner Vance Vega Vogel Wagner Walsh Weber West Wood Wright "
    "Young Ziegler"
)

HELD_OUT_NAMES: Final = _split(
    "Abernathy Aldermoor Bellweather Birkdale Blackthorn Bramley Calloway Cavendish Corvina Crestline "
    "Dovetail Dunmore Eastgate Elderberry Everhart Falconer Fernbrook Foxglove Galloway Garibaldi "
    "Greystoke Halvorsen Hawthorne Hollander Ironwood Jasperson Juniper Kestrel Kingfisher Lavender "
    "Lindqvist Lockhart Magellan Marchetti Meadowlark Montrose Nightingale Northcott Oakhurst Osterberg "
    "Pemberton Pinnacle Quicksilver Radcliffe Ravenna Redfern Rosewood Saltmarsh Santiago Silverton "
    "Sparrow Stockwell Summerfield Tamarind Thackeray Trevelyan Underhill Valentino Vanderberg "
    "Westbrook Whitcombe Wolverton Yamazaki Zimmerman"
)

ONSETS: Final = _split(
    "b br c ch cl d dr f fl fr g gl gr h j k kl kr l m n p ph pl pr qu r s sc sh sk sl sp st t th tr v w wh y z"
)
VOWELS: Final = _split("a e i o u ai au ea ee ei ia ie io oa oo ou y")
CODAS: Final = (
    _split(
        "b ck ct d ff g gh k l ld lf ll lm ln lt m mb mp n nd ng nk nt p r rd rk rl rm rn rs rt rth s sh ss "
        "st t th tt v w wn x z"
    )
    + ("",) * 16
)

TRADES: Final = _split(
    "Foods Logistics Supplies Consulting Design Electric Engineering Freight Hardware Industries "
    "Interiors Landscaping Marketing Media Optics Packaging Paper Partners Plumbing Printing Security "
    "Services Software Solutions Studio Systems Tools Trading Transport Works"
)
LEGAL_FORMS: Final = (
    "Ltd",
    "Ltd.",
    "Inc",
    "Inc.",
    "LLC",
    "GmbH",
    "AG",
    "S.A.",
    "B.V.",
    "Co.",
    "PLC",
    "SARL",
    "AB",
    "",
)

MONTHS: Final = _split("January February March April May June July August September October November December")

CURRENCY_SYMBOLS: Final = {"USD": "$", "EUR": "€", "GBP": "£", "INR": "₹"}
CURRENCIES: Final = ("USD", "EUR", "GBP", "INR", "CHF", "SEK", "PLN", "CAD")

LABELS: Final[dict[str, tuple[str, ...]]] = {
    "vendor": (
        "Vendor",
        "From",
        "Seller",
        "Supplier",
        "Issued by",
        "Sold by",
        "Billed by",
        "Vendor name",
        "Merchant",
    ),
    "number": (
        "Invoice number",
        "Invoice no.",
        "Invoice no",
        "Invoice #",
        "Invoice ID",
        "Invoice",
        "Inv. no.",
        "Bill no.",
        "Bill number",
        "Document number",
        "Document no.",
        "Inv #",
        "Number",
    ),
    "date": (
        "Invoice date",
        "Date",
        "Issue date",
        "Date of issue",
        "Issued on",
        "Bill date",
        "Issued",
        "Date of invoice",
        "Document date",
        "Dated",
    ),
    "currency": (
        "Currency",
        "Currency code",
        "Invoice currency",
        "All amounts in",
        "Amounts in",
        "Prices in",
    ),
    "total": (
        "Total",
        "Total due",
        "Amount due",
        "Grand total",
        "Balance due",
        "Invoice total",
        "Total payable",
        "Total amount",
        "Amount payable",
        "Total to pay",
    ),
    "customer": (
        "Customer",
        "Bill to",
        "Billed to",
        "Sold to",
        "Ship to",
        "Client",
        "To",
        "Buyer",
        "Customer name",
    ),
    "order": (
        "PO number",
        "Order no.",
        "PO",
        "Order number",
        "Order ID",
        "Your reference",
        "PO #",
        "Customer no.",
    ),
    "due": ("Due date", "Payment due", "Pay by", "Due", "Due on", "Please pay by", "Payment date"),
    "delivered": ("Delivery date", "Ship date", "Order date", "Delivered on", "Shipped on", "Ordered on"),
    "subtotal": ("Subtotal", "Net amount", "Net", "Sub-total", "Net total"),
    "tax": ("Tax", "VAT", "VAT 20%", "Sales tax", "VAT amount", "Tax 8%", "GST"),
    "shipping": ("Shipping", "Delivery", "Freight", "Handling", "Discount", "Deposit paid"),
    "phone": ("Phone", "Tel", "Tel.", "Fax", "Telephone"),
    "address": ("Address", "Street", "Office"),
    "terms": ("Terms", "Payment terms"),
    "item": ("Item", "Description", "Line 1", "Product", "Service"),
}

HELD_OUT_LABELS: Final[dict[str, tuple[str, ...]]] = {
    "vendor": ("Supplier name", "Seller name", "Invoice from", "Invoice issued by"),
    "number": ("Bill ID", "Document ID", "Bill #", "Inv. number", "Number of invoice"),
    "date": ("Invoice issued on", "Date issued", "Date of bill", "Document issued on"),
    "currency": ("Total currency", "Currency of invoice", "Invoice amounts in"),
    "total": ("Invoice amount due", "Total balance due", "Grand total due", "Total invoice amount"),
    "due": ("Payment due date", "Total due on", "Due by"),
    "order": ("Customer order no.", "Your order number"),
}

CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "vendor": (
        "this invoice comes from {}",
        "{} is the seller",
        "sold by {}",
        "issued by {}",
        "we are {}",
        "this bill was sent by {}",
        "your supplier is {}",
        "the vendor is {}",
        "goods supplied by {}",
    ),
    "number": (
        "invoice number {}",
        "this is invoice {}",
        "the invoice number is {}",
        "our invoice no. {}",
        "bill number {}",
        "the number of this invoice is {}",
        "document number {}",
    ),
    "date": (
        "dated {}",
        "issued on {}",
        "the invoice date is {}",
        "invoiced on {}",
        "this bill was issued on {}",
        "the date of issue is {}",
    ),
    "currency": ("all amounts are in {}", "the currency is {}", "prices are in {}", "amounts in {}"),
    "total": (
        "the total is {}",
        "please pay {}",
        "the total due is {}",
        "the amount due is {}",
        "you owe {} in total",
        "the grand total comes to {}",
        "the balance due is {}",
        "{} is payable",
    ),
    "customer": ("billed to {}", "sold to {}", "the customer is {}", "prepared for {}", "the buyer is {}"),
    "order": ("your order {}", "the PO number is {}", "order number {}", "your reference is {}"),
    "due": ("payment is due on {}", "please pay by {}", "the due date is {}", "payable by {}"),
    "delivered": ("delivered on {}", "the goods were shipped on {}", "ordered on {}"),
    "subtotal": ("the subtotal is {}", "the net amount is {}"),
    "tax": ("tax is {}", "this includes VAT of {}"),
    "shipping": ("shipping costs {}", "freight is {}"),
    "phone": ("call us on {}", "our phone is {}"),
    "address": ("our office is at {}", "our address is {}"),
    "terms": ("our terms are {}", "payment terms {}"),
    "item": ("for {}", "we supplied {}", "you bought {}"),
}

HELD_OUT_CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "vendor": ("the seller is {}", "this invoice was issued by {}", "your vendor is {}"),
    "number": ("this is bill number {}", "the document number is {}"),
    "date": ("the date of this invoice is {}", "this invoice was issued on {}"),
    "total": ("the total payable is {}", "the total amount due is {}"),
}

LINE_SEPARATORS: Final = (": ", ":", " - ", " = ", " | ", "\t", ":\t", " : ", "; ", "  ", "    ", ", ", " -> ", ":  ")
SEPARATORS: Final[dict[str, tuple[str, ...]]] = {
    "lines": LINE_SEPARATORS,
    "columns": LINE_SEPARATORS,
    "stacked": (":\n", "\n", "\n  ", ":\n    ", " :\n"),
    "table": ("| ", "|", ";", "\t", " , "),
    "leaders": (".", "-", ". ", "_"),
    "brackets": ("[]", "()", "<>", "**"),
    "sentences": (" ", "\n", " and ", ", ", "; "),
}
HELD_OUT_LINE_SEPARATORS: Final = (" => ", " :: ", " ~ ", " >> ", " --- ", " / ")
HELD_OUT_SEPARATORS: Final[dict[str, tuple[str, ...]]] = {
    "lines": HELD_OUT_LINE_SEPARATORS,
    "columns": HELD_OUT_LINE_SEPARATORS,
    "stacked": (" -\n", ":\n- ", "\n> "),
    "table": (" ; ", "\t| ", " | | "),
    "leaders": ("~", "- "),
    "brackets": ("==", "||"),
    "sentences": (", and ", " - "),
}
SEPARATOR_CHARACTERS: Final = ":-=|>~/*._+"

BULLETS: Final = ("", "", "", "- ", "* ", "> ", "• ", "  ", "# ")
HELD_OUT_BULLETS: Final = ("+ ", "-- ", "** ")

TITLES: Final = (
    "INVOICE",
    "Invoice",
    "Tax invoice",
    "TAX INVOICE",
    "Bill",
    "*** INVOICE ***",
    "Sales invoice",
    "BILL",
)
FAREWELLS: Final = (
    "Thank you for your business!",
    "Thank you.",
    "Please quote the invoice number.",
    "Page 1 of 1",
    "E. & O. E.",
    "We appreciate your order.",
    "Goods remain our property until paid.",
)
STREETS: Final = _split("Mill Station Church High Park River Bridge Garden King Queen Harbour Market Spring Lake")
STREET_KINDS: Final = ("Street", "Road", "Lane", "Avenue", "St", "Rd")
ITEMS: Final = _split(
    "Widget Cable Chair Desk Lamp Paper Pump Valve Filter Panel Licence Support Training Battery Sensor"
)

REQUESTS: Final = (
    "Extract the fields of this invoice as JSON:",
    "Invoice to JSON.",
    "Please read this invoice:",
    "Turn this invoice into JSON.",
    "What does this invoice say?",
)
SYSTEM_PROMPTS: Final = (
    "You read invoices and answer in JSON.",
    "Extract vendor, number, date, currency and total.",
    "You are a helpful assistant.",
    "Answer with JSON only.",
)

ALL_WORDS: Final[tuple[str, ...]] = tuple(
    sorted(
        {
            word
            for phrases in (*LABELS.values(), *CLAUSES.values(), SURNAMES, TRADES, MONTHS, STREETS, ITEMS)
            for phrase in phrases
            for word in re.findall("[a-z]{3,}", phrase.lower())
        }
    )
)
"""Every word that training invoices print, in lower case: what coined names take fragments from."""
