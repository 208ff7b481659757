"""Words of English abbreviations, units, currencies and signs, for `spoken_english`."""

# Letters are read by their own names, except that "a" alone is an article; "ay" is the name of the letter.
LETTER_NAMES = {"a": "ay"}

MONTHS = {
    "January": "January", "February": "February", "March": "March", "April": "April", "May": "May", "June": "June",
    "July": "July", "August": "August", "September": "September", "October": "October", "November": "November",
    "December": "December", "Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June",
    "Jul": "July", "Aug": "August", "Sept": "September", "Sep": "September", "Oct": "October", "Nov": "November",
    "Dec": "December",
}  # fmt: skip

ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip

# With a full stop, before a name.
TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "Rev": "Reverend", "Hon": "Honorable",
    "Gen": "General", "Col": "Colonel", "Maj": "Major", "Capt": "Captain", "Cpt": "Captain", "Cmdr": "Commander",
    "Lt": "Lieutenant", "Sgt": "Sergeant", "Cpl": "Corporal", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Pres": "President", "Supt": "Superintendent", "Messrs": "Messieurs", "Mt": "Mount",
    "Ft": "Fort", "Mme": "Madame", "Fr": "Father",
}  # fmt: skip

# With a full stop, which may end the sentence too.
ABBREVIATIONS = {
    "e.g": "for example", "i.e": "that is", "etc": "et cetera", "vs": "versus", "cf": "compare", "et al": "and others",
    "approx": "approximately", "dept": "department", "Dept": "Department", "est": "established", "incl": "including",
    "misc": "miscellaneous", "Inc": "Incorporated", "Ltd": "Limited", "Corp": "Corporation", "Co": "Company",
    "Bros": "Brothers", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane", "Hwy": "Highway",
    "Sq": "Square", "Apt": "Apartment", "Univ": "University", "Assn": "Association", "Jr": "Junior", "Sr": "Senior",
    "Esq": "Esquire", "Ph.D": "p h d", "M.D": "m d", "Jan": "January", "Feb": "February", "Aug": "August",
    "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December", "Mon": "Monday", "Tues": "Tuesday",
    "Wed": "Wednesday", "Thurs": "Thursday", "Fri": "Friday",
}  # fmt: skip

# Before a number, with a full stop.
BEFORE_NUMBERS = {
    "No": "number", "no": "number", "Nos": "numbers", "nos": "numbers", "p": "page", "pp": "pages", "Vol": "volume",
    "vol": "volume", "Ch": "chapter", "ch": "chapter", "Fig": "figure", "fig": "figure", "Sec": "section",
    "sec": "section", "Art": "article", "ca": "circa", "c": "circa",
}  # fmt: skip

# After a number: one, several.
UNITS = {
    "%": ("percent", "percent"), "\u2030": ("per mille", "per mille"), "\u00b0C": ("degree Celsius", "degrees Celsius"),
    "\u00b0F": ("degree Fahrenheit", "degrees Fahrenheit"), "\u00b0": ("degree", "degrees"),
    "km": ("kilometer", "kilometers"), "m": ("meter", "meters"), "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"), "mi": ("mile", "miles"), "ft": ("foot", "feet"), "yd": ("yard", "yards"),
    "km^2": ("square kilometer", "square kilometers"), "m^2": ("square meter", "square meters"),
    "cm^2": ("square centimeter", "square centimeters"), "m^3": ("cubic meter", "cubic meters"),
    "cm^3": ("cubic centimeter", "cubic centimeters"), "sq ft": ("square foot", "square feet"),
    "km/h": ("kilometer per hour", "kilometers per hour"), "kph": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"), "m/s": ("meter per second", "meters per second"),
    "\u03bcm": ("micrometer", "micrometers"), "\u03a9": ("ohm", "ohms"),
    "kbit/s": ("kilobit per second", "kilobits per second"), "Mbit/s": ("megabit per second", "megabits per second"),
    "kg": ("kilogram", "kilograms"), "g": ("gram", "grams"), "mg": ("milligram", "milligrams"),
    "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"),
    "l": ("liter", "liters"), "L": ("liter", "liters"), "ml": ("milliliter", "milliliters"),
    "mL": ("milliliter", "milliliters"), "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"), "dB": ("decibel", "decibels"),
    "KB": ("kilobyte", "kilobytes"), "kB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"), "TB": ("terabyte", "terabytes"),
    "kbps": ("kilobit per second", "kilobits per second"), "Mbps": ("megabit per second", "megabits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"), "W": ("watt", "watts"), "kW": ("kilowatt", "kilowatts"),
    "MW": ("megawatt", "megawatts"), "kWh": ("kilowatt hour", "kilowatt hours"), "V": ("volt", "volts"),
    "ms": ("millisecond", "milliseconds"), "sec": ("second", "seconds"), "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"), "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "px": ("pixel", "pixels"),
    "kcal": ("kilocalorie", "kilocalories"), "k": ("thousand", "thousand"), "bn": ("billion", "billion"),
    "rpm": ("revolution per minute", "revolutions per minute"),
    "ppm": ("part per million", "parts per million"),
}  # fmt: skip

# One, several, one hundredth, several hundredths.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "US$": ("u s dollar", "u s dollars", "cent", "cents"),
    "\u20ac": ("euro", "euros", "cent", "cents"),
    "\u00a3": ("pound", "pounds", "penny", "pence"),
    "\u00a5": ("yen", "yen", "", ""),
    "\u20b9": ("rupee", "rupees", "paisa", "paise"),
    "\u20bd": ("ruble", "rubles", "kopek", "kopeks"),
    "\u20a9": ("won", "won", "", ""),
    "\u20bf": ("bitcoin", "bitcoins", "", ""),
    "\u00a2": ("cent", "cents", "", ""),
    "USD": ("u s dollar", "u s dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("pound", "pounds", "penny", "pence"),
}
MAGNITUDES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion", "mm": "million"}

NUMBERED = (
    "Chapter", "Part", "Volume", "Book", "Act", "Scene", "Section", "Article", "War", "Phase", "Type", "Class", "Stage",
    "Level", "Grade", "Appendix", "Figure", "Table", "Title", "Episode", "Group", "Division", "Unit", "Bowl",
)  # fmt: skip
REGNAL = (
    "Henry", "Louis", "Elizabeth", "Edward", "George", "Charles", "James", "William", "Richard", "Mary", "John", "Paul",
    "Pius", "Benedict", "Philip", "Napoleon", "Nicholas", "Alexander", "Catherine", "Peter", "Frederick", "Ivan", "Leo",
    "Gregory", "Innocent", "Clement", "Ferdinand", "Alfonso", "Otto", "Francis", "Rudolf", "Leopold", "Ramesses",
    "Gustav", "Christian", "Umberto", "Victor", "Wilhelm", "Ludwig", "Friedrich", "Constantine", "Urban", "Sixtus",
    "Adrian", "Alexios", "Darius", "Ptolemy", "Thutmose", "Amenhotep", "Olaf", "Harald", "Haakon", "Carl", "Karl",
)  # fmt: skip

# Capitals that are read as a word.
WORDS_IN_CAPITALS = frozenset([
    "AM", "AN", "AS", "AT", "BE", "BY", "DO", "GO", "HE", "IF", "IN", "IS", "IT", "ME", "MY", "NO", "OF", "ON", "OR",
    "SO", "TO", "UP", "WE", "HI", "OH", "ALL", "AND", "ANY", "ARE", "BUT", "CAN", "DAY", "DID", "FOR", "GET", "HAD",
    "HAS", "HER", "HIM", "HIS", "HOW", "ITS", "LET", "MAN", "MAY", "NEW", "NOT", "NOW", "OLD", "ONE", "OUR", "OUT",
    "PUT", "SAY", "SEE", "SHE", "THE", "TOO", "TWO", "USE", "WAS", "WAY", "WHO", "WHY", "YES", "YET", "YOU", "BIG",
    "BAD", "RED", "TOP", "END", "WOW", "HEY", "PIN", "SIM", "RAM", "ROM", "GIF", "ZIP", "AIDS",
])  # fmt: skip
# Capitals of four letters and more that are spelled although they have vowels.
SPELLED = frozenset(["USSR", "NAACP", "AARP", "IEEE", "UCLA", "UNHCR", "ISBN", "ICBM", "OECD", "ESPN"])

# Parts of addresses that are read as words.
DOMAINS = ("com", "org", "net", "edu", "gov", "info")
WEB_SIGNS = {
    ".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark",
    "=": "equals", "&": "and", "#": "hash", "%": "percent", "+": "plus", "~": "tilde", ",": "comma", ";": "semicolon",
}  # fmt: skip

# Whatever is left of these after the other rules.
SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "\u2030": "per mille", "\u00b0": "degrees",
    "\u00a7": "section", "\u00d7": "times", "\u00f7": "divided by", "\u00b1": "plus or minus",
    "\u2248": "approximately", "\u2260": "is not", "\u2264": "at most", "\u2265": "at least", "<": "less than",
    ">": "greater than", "\u03c0": "pi", "\u221e": "infinity", "\u221a": "square root of", "$": "dollars",
    "\u20ac": "euros",    "\u00a3": "pounds", "\u00a5": "yen", "\u20b9": "rupees", "\u00a2": "cents",
    # marks of writing that nobody reads
    "*": "", "_": "", "|": "", "`": "", "^": "", "~": "", "\\": "", "#": "",
}  # fmt: skip
