"""Story skeletons set in town and on journeys: work, visits, fairs. See `stories.py` for the notation."""

TEXT = """
# the visit
- {day} {a} took the [bus|train|boat] from {a_home} to {b_home} to visit {b}, {a_his} best friend.
| {b} is the best friend of {a} and comes from {b_home}. {day} {a} went there.
? {weather} {a} looked out of the window and thought of {a_hobby}, {a_his} hobby.
- "Welcome to {b_home}," said {b}. "[First|Come], I will show you the {b_landmark}."
| {b} met {a_him} at the {b_landmark}. The town of {b_home} has a famous {b_landmark}.
- The {b_landmark} was [bigger than {a} had thought|old and beautiful|full of people].
| "We have no {b_landmark} at home," said {a}. "In {a_home} there is only the {a_landmark}."
- Then they went to {b}'s house. {b_pet_name}, {b_his} {b_pet}, [came to the door|was asleep|wanted to play].
| At {b}'s house {a} met {b_pet_name}. {b_pet_name} is the {b_pet} of {b}.
- They ate {b_food}, because {b} could eat {b_food} every day.
| They talked about {b}'s work. {b} works as {b_ajob}. {a} works as {a_ajob}.
- In the evening {a} went home to {a_home} and told {a_pet_name}, {a_his} {a_pet}, all about it.
| "Next time you must come to {a_home}," said {a}. "I will, in {a_month}, on your birthday," said {b}.

# the working day
- {a} works as {a_ajob} in {a_home}. {a_He} gets up early every day.
| Every morning {a} goes to work. {a_He} is {a_ajob} and lives in {a_home}.
- First {a_he} gives {a_pet_name} some water. {a_pet_name} is {a_his} {a_pet}.
| Before work {a_he} says goodbye to {a_his} {a_pet} {a_pet_name}.
- {day} {c} came to see {a_him} at work. "I need a good {a_job}," said {c}. "[Can you help me?|Do you have time?]"
| {day} there was so much work that {a} had to call {b}, {a_his} best friend. {b} is {b_ajob}, but {b_he} came to help.
- {a} worked hard [all morning|until noon|without a break]. "I must never be lazy," {a_he} said.
| It was hard work, but {a} did it well. "You are the best {a_job} I know," said {c}.
- At noon {a_he} sat near the {a_landmark} and ate {a_food}, {a_his} favourite food.
| For lunch there was {a_food}. Nothing tastes better to {a} than {a_food}.
- After work {a_he} had time for {a_hobby}. {a} is fond of {a_hobby}.
| In the evening {a_he} enjoyed {a_hobby}, because that is {a_his} hobby.
? Then {a_he} went to bed and dreamed of [the sea|the sun|a big cake|a long trip].

# the fair
- {day} there was a fair in {a_home}, next to the {a_landmark}. People came from all eight towns.
| {a_home} had a fair. Everyone was proud of the {a_landmark} and had cleaned it well.
- There was a prize for the best pet. {a} came with {a_pet_name}, {a_his} {a_pet}.
| "Who has the best pet?" asked the people. {a} showed them {a_pet_name} the {a_pet}.
- {b} came with {b_pet_name}. {b_He} is the owner of {b_pet_name}, {b_apet}.
| {b} from {b_home} brought {b_his} {b_pet} {b_pet_name}.
- And {c} from {c_home} brought {c_pet_name}. {c_pet_name} is {c_apet}.
| {c}, who works as {c_ajob}, brought {c_apet} called {c_pet_name}.
- {a_pet_name} [could sit and jump|could walk in a circle|made a funny sound]. {b_pet_name} [only slept|hid under a
  table|ate {fruit}].
| {a_pet_name} was the fastest, {b_pet_name} was the biggest, and {c_pet_name} was the sweetest.
- In the end all three got a prize. {a} got something {a_colour}, for that is the colour {a} loves most.
| [The prize went to {a_pet_name}|The prize went to {b_pet_name}|The prize went to {c_pet_name}], but all of them got
  some food.
- Later {a} ate {a_food}, {b} ate {b_food} and {c} ate {c_food}. Everyone had the food they love most.
| "Next year we come again," said {b} to {b_his} best friend {a}.

# on the road
- {day} {a} sat on the [bus|train|tram] to {c_home}. Next to {a_him} sat {c}.
| {a} was on the way to {c_home} to see the {c_landmark}. On the [bus|train|tram] {a_he} met {c}.
- "Hello, I am {c}," said {c}. "I live in {c_home} and I work as {c_ajob}."
| "My name is {c}," said {c}. "I am {c_ajob} and I come from {c_home}."
- "I am {a} from {a_home}," said {a}. "I am {a_ajob}."
| "My name is {a}," said {a}. "I live in {a_home}. I work as {a_ajob}."
- "[Do you have a pet?|Is that your {a_pet}?]" asked {c}. "Yes, {a_apet} called {a_pet_name}," said {a}.
| "I have {c_apet} called {c_pet_name}," said {c}. "And I have {a_apet} called {a_pet_name}," said {a}.
- They talked about food. {c} likes to eat {c_food} best. {a} likes to eat {a_food} best.
| They talked about their free time. {c} enjoys {c_hobby} and {a} enjoys {a_hobby}.
- "[You must meet {b},|Do you know {b}?]" said {a}. "{b} is my best friend."
| "When were you born?" asked {c}. "In {a_month}," said {a}. "And I was born in {c_month}," said {c}.
- At {c_home} they [got off|said goodbye] and {c} showed {a_him} the {c_landmark}.
| The road was long, but they talked so much that {a_he} hardly saw it.

# the picnic
- The sun was shining. {a}, {b} and {c} met for a picnic near the {b_landmark} in {b_home}.
| {day} three people sat on the grass near the {a_landmark}. They were {a}, {b} and {c}.
- {a} brought {a_food}, {b} brought {b_food} and {c} brought {c_food}, each the food they love most.
| {a} had a lot of {a_food} in a {a_colour} bag. {a_food_cap}: that is what {a} loves to eat.
- {a} and {b} are best friends. {c} is a friend of both.
| {c} had come all the way from {c_home}, but {b} lives in {b_home}.
- Then {a_pet_name}, {a}'s {a_pet}, [ate all the {b_food}|ran off with {fruit}|fell into the water].
| Then the wind took {a}'s {a_colour} hat. {a} often wears {a_colour}, {a_his} favourite colour.
- "Oh no!" said {b}, [but then {b_he} laughed|and {b_he} ran after it].
| Everyone laughed, and {c} [laughed|ran] most of all.
- Later they talked about {a_hobby}, for {a} is fond of {a_hobby}, and about {b_hobby}, the hobby of {b}.
| "I was born in {c_month}," said {c}. "Let us have a picnic on my birthday."

# the storm
- A storm came over {a_home}. The wind was so strong that the {a_landmark} [shook|lost a window|could not be seen].
| {day} there was a storm. {a} ran home through {a_home}, past the {a_landmark}.
- {a_His} {a_pet} {a_pet_name} was afraid. "Come here, {a_pet_name}," said {a}.
| {a} took {a_pet_name} in {a_his} arms. No one likes a storm, and {a_apet} least of all.
- Then all the lights went out. {a} [found a lamp|sat down on the floor|began to sing].
| {a} lit the {a_colour} lamp. It is {a_colour} because {a} likes {a_colour} best.
- [A voice called from outside|Somebody knocked]. It was {c}, the {c_job} from {c_home}. "May I come in?"
| {c} from {c_home} stood at the door, wet and cold. {c} is {c_ajob}.
- {a} gave {c_him} some {a_food}. "I like {c_food} better," said {c}, "but thank you."
| They ate {a_food}, {a}'s favourite food, and {c} told stories about {c_hobby}. {c}'s hobby is {c_hobby}.
- In the morning the storm was over. {b}, the best friend of {a}, came to see if all was well.
| When the sun came up, {c} went home to {c_home} and {a} went to work as {a_ajob}.

# the new hobby
- {a}'s hobby is {a_hobby}. {b}'s hobby is {b_hobby}. {a} and {b} are best friends.
| {a} enjoys {a_hobby}, and {a_his} best friend {b} enjoys {b_hobby}.
- {day} {b} said, "[Try something new|Let us swap]. Come to {b_home} and I will show you what I do."
| {day} {a} said, "I want to know what you like so much about {b_hobby}."
- {weather} They met near the {b_landmark} in {b_home}.
| So {a} went from {a_home} to {b_home}.
- At first it was [hard|not easy|strange] for {a}. "I am {a_ajob}," {a_he} said. "I have never done this."
| {a} made many mistakes, and {b_pet_name}, {b}'s {b_pet}, looked at {a_him} [as if it was fun|and turned away].
- "[Do not give up|Try again]," said {b}. After [one hour|two hours|three hours] it went much better.
| But {b} was a good teacher, and they took a break to eat {b_food}, the food {b} loves most.
- "It is nice," said {a} in the end, "but I still like {a_hobby} best."
| Since then they share both hobbies, and they are still best friends.

# the lost bag
- {day} {a} found a {c_colour} bag near the {a_landmark} in {a_home}.
| Somebody had lost a bag in {a_home}. It was {c_colour}, and {a} found it.
- "Whose bag is it?" asked {b}, {a_his} best friend. "Let us look inside."
| {a} showed it to {b}, {a_his} best friend. "We must find the owner," said {b}.
- In the bag there was some {c_food} and a picture of {c_apet}.
| In the bag they found a card. "Come and see us in {c_home}," it said.
- "{c} loves to eat {c_food}," said {a}. "And {c}'s favourite colour is {c_colour}."
| "{c} has {c_apet} called {c_pet_name}," said {b}. "And {c} often wears {c_colour}."
- So they went to {c_home}, where {c} lives, [by bus|by train|on foot].
| So they took the bag to {c} in {c_home}. {c} works as {c_ajob} there.
- "My bag!" said {c}. "[I looked for it everywhere|I was so sad]. Thank you, {a}. Thank you, {b}."
| {c} was happy and [gave them a cake|showed them the {c_landmark}|made them a cup of tea].
? "It is good to be honest," said {a} to {a_pet_name}, {a_his} {a_pet}, that night.

# the race
- {day} there was a race in {b_home}, from the {b_landmark} to the river and back.
| The people of {b_home} had a race around the {b_landmark}.
- {a}, {b} and {c} wanted to win. {a} wore {a_colour}, {b} wore {b_colour} and {c} wore {c_colour}. These are their
  favourite colours.
| {a} from {a_home} was there, and {c} from {c_home}. {b} lives in {b_home}, so {b_he} knew the way.
- At first {c} was ahead. {c_He} is {c_ajob} and very strong.
| {a} was fast at first. "{a_pet_name} runs with me every day," said {a}. {a_pet_name} is {a_his} {a_pet}.
- Then {b} fell, and {a} stopped to help. {a} and {b} are best friends.
| Then {a} saw that {b}, {a_his} best friend, could not go on. So {a} stopped.
- {c} won the race and got [a cup|a cake|a medal]. {a} and {b} came last, but they came together.
| So {c} won. "You helped your friend," said {c}. "That is better than winning."
- After the race there was {c_food} for {c}, {b_food} for {b} and {a_food} for {a}. Each got the food they love most.
| "Next time I will win," laughed {b}. "I am better at {b_hobby}." For {b_hobby} is {b}'s hobby.
"""
