"""Story skeletons set at home: pets, birthdays, meals, letters. See `stories.py` for the notation."""

TEXT = """
# the lost pet
- {day} {a} [could not find|looked everywhere for|called for] {a_pet_name}. {a_pet_name} is {a_his} {a_pet}.
| {a} has {a_apet} called {a_pet_name}. {day} {a_pet_name} was gone.
| {day} {a} woke up and {a_pet_name} was not there. {a_pet_name} is the {a_pet} of {a}.
- {a_He} looked [under the bed|behind the door|in the kitchen] and [in the garden|on the roof|behind the shed], but
  {a_he} found nothing.
| {a_He} looked in every room of {a_his} house in {a_home}, but the {a_pet} was not there.
? {weather} {a} was [sad|worried|very sad|afraid].
- {a_He} went to {a_his} best friend {b} for help. "[Do not worry|Do not be sad|We will find {a_pet_name}]," said {b}.
| {a_His} best friend {b} came from {b_home} to help. "We will look together," said {b}.
- They [walked|ran|went] through {a_home} and came to the {a_landmark}. "[Look|See|Listen]!" said {b}.
| They asked {c}, who works as {c_ajob}. "I saw a {a_pet} near the {a_landmark}," said {c}.
- There was {a_pet_name}, [fast asleep|safe and well|a little cold and hungry|sitting in the sun].
| Near the {a_landmark} of {a_home} they found {a_pet_name} [at last|in the end|under a tree].
- {a} [laughed|smiled|was so happy] and gave {b} some {b_food}, because that is what {b} likes to eat best.
| That evening {a} made {a_food}, {a_his} favourite food, and {b} stayed to eat with {a_him}.
? From then on {a} [always closed the door|looked after {a_pet_name} even better|never let {a_pet_name} go out alone].

# the birthday
- It was {a_month}, and {a} was [happy|excited|full of joy]. {a_He} was born in {a_month}, so it was time for {a_his}
  birthday.
| Every year in {a_month} {a} has {a_his} birthday. This year {a_he} wanted a big party.
- {b}, {a_his} best friend, wanted to [give {a_him} a surprise|make a fine party|do something special].
| "What can I give to {a}?" thought {b}. {b} is {a_his} best friend.
- {b_He} painted a [box|chair|picture|door] {a_colour}, because {a_colour} is the favourite colour of {a}.
| {b_He} bought a {a_colour} [hat|scarf|coat|shirt], because {a} likes {a_colour} best of all colours.
- Then {b_he} made a lot of {a_food}. {a} loves to eat {a_food}.
| {c} came too and brought {a_food}, the food {a} loves most.
? {c} is {c_ajob} and comes from {c_home}. {c_He} brought {c_his} {c_pet} {c_pet_name}.
- When {a} opened the door, everyone [sang|called|said] "Happy birthday, {a}!"
| At the party they [danced|sang|played] and told stories until late at night.
- Even {a_pet_name} the {a_pet} [was happy|got a small gift|had a piece of cake].
| "This is the best birthday of my life," said {a}. {a_He} hugged {b}.

# the meal
- {day} {a} was hungry. {a_He} wanted to eat {a_food}, {a_his} favourite food.
| {a} could eat {a_food} every day. {day} {a_he} wanted to make some.
- {a_He} went to the kitchen, but there was [nothing|no food at all|only {fruit}] there.
| {a_He} looked on the shelf and found only [{fruit}|an empty box|some salt].
- So {a_he} walked through {a_home}, past the {a_landmark}, to find food.
| So {a_he} took {a_his} {a_colour} bag and went out. {weather}
- On the way {a_he} met {c}. {c} likes to eat {c_food} best. "[Come and eat {c_food} with me|I only have {c_food}],"
  said {c}.
| On the way {a_he} met {c}, who works as {c_ajob}. {c} was on the way home to {c_home}.
- "[Thank you|You are kind], but I want {a_food} today," said {a}.
| "Do you know where I can find {a_food}?" asked {a}.
- In the end {b}, {a_his} best friend, [helped {a_him}|had an idea|came by]. Together they made the {a_food}.
| Then {a_he} went to {b}, {a_his} best friend. {b} had made {b_food}, because {b} loves {b_food}, but there was
  {a_food} too.
- They ate until they [were full|could eat no more], and {a_pet_name} the {a_pet} got the rest.
| It tasted so good that {a} [smiled all evening|asked for more|licked the plate].

# the rainy day
- {day} it rained and rained in {a_home}. {a} had to stay at home with {a_his} {a_pet} {a_pet_name}.
| Rain fell on {a_home}. {a} sat at the window with {a_pet_name}, {a_his} {a_pet}.
- {a}'s hobby is {a_hobby}, but {a_he} could not think of {a_hobby} in this rain.
| {a} enjoys {a_hobby}, but {day_low} {a_he} [was too tired|did not feel like it|had no time for it].
- "What shall we do?" {a_he} asked {a_pet_name}. {a_pet_name} [said nothing|only looked at {a_him}|closed both eyes].
| {a_He} counted the drops. One, two, three, four, five. Then {a_he} stopped.
- [There was a knock at the door|The bell rang]. It was {b}, {a_his} best friend, in a {b_colour} coat. {b_colour_cap}
  is {b_his} favourite colour.
| Then {b} came in, all wet. {b} is the best friend of {a}. {b_He} had come all the way from {b_home}.
- "I was born in {b_month}, and it always rains in {b_month}," laughed {b}. They made {b_food}, which {b} loves.
| {b} told {a_him} about {b_hobby}, {b_his} hobby, and about {b_pet_name}, {b_his} {b_pet}.
- When the rain stopped, they [hardly saw it|went out to see the {a_landmark}|were sorry it was over].
| "Rain is not so bad with a friend," said {a}.

# the letter
- {a} sat down [at the table|at {a_his} desk|under a lamp] and wrote a letter to {a_his} best friend {b}.
| {day} {b} got a letter. It was from {b_his} best friend {a}.
- "Dear {b}, [how are you?|I hope you are well.|it is quiet here in {a_home}.]
| "Dear {b}, I am sitting in my house in {a_home} and I think of you.
- {a_pet_name} is well. You know that no {a_pet} is as [clever|sweet|lazy|funny] as {a_pet_name}.
| My {a_pet} {a_pet_name} sleeps next to me while I write.
- The work as {a_ajob} is [hard|good|fun] this week, and in the evening I find time for {a_hobby}.
| I still work as {a_ajob}, and I still like {a_hobby} in my free time.
- [Do you still|Do you] eat so much {b_food}? I know you love {b_food}. I had {a_food} today, my favourite.
| Are you coming in {a_month}? You know that my birthday is in {a_month}.
? Last week I met {c} from {c_home}. {c} was wearing {c_colour}, as always.
- Come and visit me soon. We can go to the {a_landmark}. Your friend {a}."
| Please say hello to {b_pet_name}, your {b_pet}. Your best friend {a}."
- {b} [read the letter twice|smiled] and put it in a {b_colour} box. {b_colour_cap} is the colour {b} loves most.

# the sick day
- {day} {b} was ill. {b_He} lay in bed in {b_home} and [could not work|did not want to eat|felt very bad].
| {b} works as {b_ajob}, but {day_low} {b_he} was too ill to work.
- {a}, {b_his} best friend, heard of it [in {a_home}|from {c}|at work].
| {c} told {a} about it. {a} is {b_his} best friend.
- {a_He} packed some {b_food}, because {b} likes to eat {b_food} best.
| {a_He} made a pot of {b_food}, the favourite food of {b}.
- {a_He} also took a {b_colour} [scarf|hat|book|blanket]. {b} thinks that {b_colour} is the best colour.
| {a_He} took {a_pet_name} along, for {a_his} {a_pet} makes everyone smile.
- "You are the best friend of all," said {b}. {b_pet_name} the {b_pet} [jumped on the bed|sat next to the bed|looked
  happy].
| {b} ate a little and slept. {a} stayed and fed {b_pet_name}, the {b_pet} of {b}.
- After [two|three|four|five] days {b} was well again and could go back to {b_hobby}, {b_his} hobby.
| Soon {b} was well. "Now I can enjoy {b_hobby} again," said {b}.

# the painted door
- {a} lives in {a_home}. {day} {a_he} wanted to paint {a_his} door.
| The door of {a}'s house in {a_home} was old. It needed paint.
- {c} said, "Paint it {c_colour}!" {c_colour_cap} is the favourite colour of {c}.
| {c} came by. "I would paint it {c_colour}," said {c}, who often wears {c_colour}.
- {b} said, "No, paint it {b_colour}!" {b} is the best friend of {a} and likes {b_colour} best of all colours.
| Then {b}, the best friend of {a}, came by. "{b_colour_cap} is better," said {b}. {b}'s favourite colour is {b_colour}.
- {a} thought about it [for a long time|while {a_he} ate some {a_food}|all night].
| {a} looked at {a_pet_name}, {a_his} {a_pet}. But {a_pet_name} did not care about colours.
- In the end {a_he} painted the door {a_colour}, because {a_colour} is {a_his} own favourite colour.
| "It is my door," said {a}, "and I like {a_colour} best." So the door became {a_colour}.
- Everyone who walked to the {a_landmark} [stopped to look at it|said that it was a fine door].
| And all three of them [laughed|were happy] and went to eat {a_food}, the food {a} loves most.

# the gift
- {b} was born in {b_month}. {a}, {b_his} best friend, had no gift yet, and it was {b_month} already.
| It was {b_month}, and {b} had a birthday. {a}, {b_his} best friend, wanted to find a good gift.
- {a_He} went to {c}, who is {c_ajob} in {c_home}. "[What can I give to {b}?|Can you help me?]" {a_he} asked.
| {a_He} asked {c} from {c_home}. {c} works as {c_ajob} and always has good ideas.
- "Does {b_he} like {c_food}?" asked {c}. "No," said {a}, "that is your favourite food. {b} loves {b_food}."
| "Give {b_him} something {c_colour}," said {c}. "No," said {a}, "you like {c_colour}, but {b} likes {b_colour}."
- "{b_He} enjoys {b_hobby}," said {a}. "[I could get something for that|Maybe a book about {b_hobby}]."
| "{b_He} has {b_apet} called {b_pet_name}," said {a}. "Maybe something for {b_pet_name}."
- So they made a {b_colour} [bag|box|hat] and put some {b_food} in it.
| In the end {a_he} took {b_him} to see the {b_landmark} of {b_home}, and they had {b_food}.
- {b} [loved it|was very happy|jumped for joy]. "You know me well, {a}," {b_he} said.
"""
