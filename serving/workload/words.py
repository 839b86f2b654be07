"""The words that generated prompts are made of."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


TOPICS = _words("""
    photosynthesis; black holes; compound interest; the water cycle; plate tectonics; inflation;
    machine learning; vaccines; supply and demand; gene editing; cloud computing; tidal power;
    the stock market; neural networks; natural selection; public key cryptography; game theory;
    jet engines; the immune system; opera; renewable energy; blockchain; the carbon cycle; jazz;
    sleep; urban planning; fermentation; cognitive bias; antibiotics; quantum computing; erosion;
    typography; the printing press; desalination; bond yields; impressionism; soil chemistry;
    satellite navigation; probability; lithium batteries; coral reefs; bread baking; volcanoes;
    database indexing; operating systems; chess openings; glaciers; microfinance; bird migration;
    semiconductor manufacturing; the placebo effect; refrigeration; suspension bridges; sonar;
    dark matter; compilers; stem cells; the Silk Road; hydroponics; behavioural economics; origami;
    radio waves; deforestation; the nervous system; insurance; solar eclipses; cheese making;
    public libraries; nuclear fusion; beekeeping; stoicism; ocean currents; color theory
""")

PLACES = _words("""
    Japan; Portugal; Iceland; Morocco; Peru; Canada; Vietnam; Norway; Kenya; Greece; Chile; Turkey;
    New Zealand; Scotland; Croatia; Mexico; India; Finland; Jordan; Brazil; Sri Lanka; Slovenia;
    South Korea; Egypt; Ireland; Argentina; Thailand; Denmark; Namibia; Estonia; Bolivia; Nepal;
    Tuscany; Kyoto; Lisbon; Patagonia; Bavaria; Sicily; Andalusia; Tasmania; Quebec; Provence
""")

INVENTIONS = _words("""
    telephone; steam engine; light bulb; microscope; printing press; bicycle; thermometer; radio;
    sewing machine; barometer; typewriter; photograph; zipper; dynamite; transistor; parachute;
    hot air balloon; pencil; telegraph; safety pin; vacuum cleaner; elevator; battery; lawn mower;
    stethoscope; submarine; escalator; ballpoint pen; dishwasher; traffic light; laser; pacemaker
""")

THINGS = _words("""
    healthy breakfast ideas; names for a cat; team building activities; science fiction novels;
    tips for public speaking; blog post titles about gardening; ways to save water; board games;
    interview questions for a data analyst; icebreaker questions; vegetarian dinner recipes;
    slogans for a coffee shop; habits of good writers; exercises without equipment; podcast ideas;
    gifts for a retired teacher; ways to reduce stress; startup ideas in education; riddles;
    common mistakes of new managers; Halloween costumes; phrases for polite refusals; puns;
    synonyms for important; questions to ask a landlord; rainy day activities for children;
    features of a good password; hobbies for introverts; keywords for a travel website; side dishes;
    documentaries about nature; uses for baking soda; songs about summer; goals for a new year;
    marketing channels for a bakery; plants that need little light; facts about penguins;
    arguments against homework; cities for digital nomads; ways to learn vocabulary; metaphors
""")

LANGUAGES = _words("""
    Python; JavaScript; Rust; Go; Java; C++; TypeScript; PHP; Bash; Kotlin; Ruby; Swift; C; Scala
""")

# (what the code is to do, tokens of a usual answer)
CODE_TASKS: tuple[tuple[str, int], ...] = (
    ("reverses a string", 90), ("checks whether a number is prime", 140),
    ("computes the nth Fibonacci number", 150), ("merges two sorted lists", 190),
    ("parses a CSV file into records", 260), ("validates an email address", 170),
    ("counts the words in a text file", 180), ("sorts a list with quicksort", 260),
    ("implements a least recently used cache", 420), ("finds the shortest path in a graph", 480),
    ("connects to a REST API and retries on errors", 430), ("converts Roman numerals", 230),
    ("implements a thread-safe queue", 450), ("solves the eight queens puzzle", 400),
    ("computes the edit distance of two words", 320), ("flattens a nested list", 150),
    ("renames all files in a folder by date", 270), ("implements a binary search tree", 560),
    ("simulates a bank account with deposits and withdrawals", 380),
    ("builds a command line to-do application", 800), ("plays tic-tac-toe against the user", 850),
    ("scrapes headlines from a news page", 360), ("generates a random password", 140),
    ("evaluates an arithmetic expression", 620), ("rotates a matrix by ninety degrees", 180),
    ("groups anagrams together", 200), ("implements a rate limiter", 430),
    ("reads a configuration file with defaults", 300), ("removes duplicates from a list", 110),
    ("converts Celsius to Fahrenheit", 80), ("implements matrix multiplication", 260),
    ("tokenises a small programming language", 780), ("draws a histogram in the terminal", 330),
    ("schedules jobs by priority", 440), ("checks balanced brackets", 190),
    ("compresses a string by run lengths", 210), ("finds the median of a data stream", 380),
)  # fmt: skip

TONGUES = _words("""
    French; German; Spanish; Italian; Portuguese; Dutch; Polish; Swedish; Turkish; Japanese; Hindi;
    Korean; Finnish; Greek; Arabic; Czech
""")

CHARACTERS = _words("""
    a lighthouse keeper; a retired detective; a young inventor; a lost astronaut; a baker; a fox;
    two rival gardeners; a deaf musician; a time traveller; a librarian; a shy dragon; a postman;
    a clockmaker; an old sailor; a robot; a chess prodigy; twin sisters; a beekeeper; a ghost;
    a night nurse; a street painter; a mountain guide; a translator; a forgetful wizard; a judge
""")

PLOTS = _words("""
    who finds a letter that was never sent; who must cross a frozen lake; who loses a bet;
    who hears a secret through a wall; who inherits an empty house; who can't tell a lie;
    who repairs a broken promise; who meets a stranger on a train; who learns to swim;
    who wakes up in the wrong century; who refuses a prize; who hides a map; who saves a village;
    who is invited to a strange dinner; who searches for a missing bell; who paints the sea;
    who befriends a crow; who misses the last boat; who finds a door in a tree; who returns home
""")

SITUATIONS = _words("""
    my boss keeps giving me extra work; my roommate never cleans the kitchen; I failed an exam;
    I can't fall asleep before two; my best friend moved abroad; I was passed over for a promotion;
    I have to give a speech at a wedding; my teenage son skips school; I want to change careers;
    I argue with my sister about money; I feel lonely in a new city; my dog barks all night;
    I was asked to lie for a colleague; my landlord raised the rent; I keep putting things off;
    I am learning guitar and make no progress; I am afraid of flying; I overspend every month;
    my parents dislike my partner; I got two job offers at once; my neighbour plays loud music;
    I want to run a marathon; my laptop keeps overheating; I have a first date on Friday;
    my garden is full of slugs; I have to tell my team about layoffs; my knees hurt after running
""")

RECIPIENTS = _words("""
    my landlord; a customer; my professor; the hiring manager; a supplier; my team; a neighbour;
    the city council; an old friend; the school principal; our investors; a colleague; my bank;
    the conference organisers; a journalist; my insurance company; the support desk; a volunteer
""")

MATTERS = _words("""
    a late delivery; a broken heater; a deadline extension; a salary review; a cancelled meeting;
    a wrong invoice; a job application; a noise complaint; a product launch; a lost package;
    a reference letter; a change of address; a refund; a schedule conflict; a project update;
    a charity event; an overdue payment; a safety inspection; a training course; a price increase
""")

PAIRS = _words("""
    coffee and tea; cats and dogs; trains and planes; SQL and NoSQL databases;
    oil and acrylic paint;
    renting and buying a house; stocks and bonds; Python and Java; running and cycling;
    wind and solar power; books and films; monoliths and microservices;
    gas and induction stoves;
    classical and operant conditioning; TCP and UDP; leasing and buying a car; yoga and pilates;
    virtue ethics and utilitarianism; mitosis and meiosis; REST and GraphQL; cotton and wool;
    capitalism and socialism; threads and processes; weather and climate; remote and office work
""")

# sentences of given texts: subject + predicate + circumstance
SUBJECTS = _words("""
    The committee; A small team of engineers; The old factory; Our neighbour; The research group;
    The museum; A local farmer; The new railway line; Most of the students; The harbour authority;
    The orchestra; An independent review; The mayor; Several volunteers; The company;
    The second experiment; A group of hikers; The library; The ministry; The winning design;
    The storm; A retired pilot; The survey; The annual festival; The patient; The spring harvest;
    The court; The software update; A visiting lecturer; The island's only doctor; The market;
    The football club; The bakery on the corner; The editor; Her first novel; The expedition
""")

PREDICATES = _words("""
    announced a plan to double its budget; lost two of its oldest members;
    was praised for its careful work; could not explain the sudden change;
    refused to comment on the matter; opened a second branch near the river;
    recorded the lowest figures in a decade; surprised everyone with a simple solution;
    was closed for repairs; raised more money than expected; changed the rules without notice;
    agreed to publish the full results; moved to a larger building; failed to meet the deadline;
    attracted visitors from many countries; kept a detailed diary of the events;
    asked for help from the public; replaced the old machines; received three awards;
    discovered a mistake in the records; planted four hundred trees; cut its prices by a third;
    hired twelve people from the region; turned down a generous offer; won by a narrow margin;
    described the journey in great detail; sold the last of its stock; apologised for the delay
""")

CIRCUMSTANCES = _words("""
    last spring; after a long debate; despite heavy rain; in the early morning;
    for the first time since the war; with the help of two universities; on the final day;
    without telling the press; because of rising costs; during the holidays; near the border;
    in front of a large crowd; within a few weeks; at the end of the season; under new management;
    to the relief of the residents; for reasons that remain unclear; by a stroke of luck;
    as the population grew; in spite of several warnings; after the bridge was finished;
    while the roads were blocked; before the elections; in a quiet part of town
""")

NAMES = _words("""
    Anna; Boris; Chen; Diego; Elena; Farid; Grace; Hugo; Ines; Jonas; Keiko; Liam; Maria; Noor;
    Oscar; Priya; Quentin; Rosa; Samir; Tara; Umar; Vera; Wei; Yusuf; Zoe
""")

GOODS = _words("""
    apples; tickets; pencils; stickers; loaves of bread; bottles of juice; marbles; books; eggs;
    candles; postcards; tulips; sandwiches; toy cars; notebooks; muffins; stamps; lemons
""")

GREETINGS = _words("""
    hi; hello there; hey, how are you?; good morning!; thanks, that helped a lot; thank you!;
    are you a real person?; what can you do?; ok, great; can you help me?; who made you?; test;
    hello, can you speak German?; what's your name?; good night; never mind, I found it;
    tell me a joke; nice to meet you; sorry, wrong window; are you there?
""")

OPENERS = ("Hi! ", "Hello, ", "Quick question: ", "Hey, ", "Please help: ", "One more thing: ")

CLOSERS = _words("""
    Thanks!; Thank you in advance.; It is for school.; It is for work.; I am in a hurry.;
    My friend asked me this.; English is not my first language.; I am curious.; Thank you so much!
""")
