"""A small table of English synonyms, written for this project: a substitute for WordNet.

Each line is one sense; words of a line replace each other. A word stands in one line only, and every entry
is a single word of a to z, so that a replacement keeps the number of words. WordNet knows far more words and
senses: shifts made with it are stronger and stranger.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SENSES = """
man guy gentleman fellow
woman lady
men guys gentlemen
women ladies
child kid youngster
children kids youngsters
baby infant
boy lad
girl lass
person individual human
people folks persons
crowd throng mob
friend pal companion
player athlete
rider horseman
worker laborer
dog hound
puppy pup
cat feline
kitten kitty
rabbit bunny
pig hog
cow cattle
chicken hen
donkey mule
bug insect
snake serpent
car automobile auto
truck lorry
bus coach
airplane plane aircraft jet
boat vessel
ship liner
bicycle bike
motorcycle motorbike
train locomotive
taxi cab
street road avenue
path trail track
sidewalk pavement walkway
house home dwelling
building structure
store shop
room chamber
bathroom restroom washroom
toilet lavatory
couch sofa settee
chair seat
cupboard cabinet
rug carpet mat
lamp light
picture image photo photograph
painting artwork
television tv
telephone phone
laptop notebook
computer pc
screen monitor display
bag sack
purse handbag
suitcase luggage
box carton
basket hamper
bottle flask
cup mug
glass tumbler
bowl basin
plate dish
knife blade
meal dinner
food fare
sandwich hoagie
cookie biscuit
candy sweets
dessert pudding
soda pop
coat jacket
trousers pants
shirt blouse
sweater jumper pullover
shoes footwear
sneakers trainers
hat cap
dress gown
clothes clothing garments
glasses spectacles eyeglasses
jewelry jewels
watch timepiece
belt strap
scarf shawl
socks stockings
ball sphere
game match
field meadow pasture
grass lawn
forest woods woodland
tree sapling
flower blossom bloom
rock stone boulder
hill mound
mountain peak
beach shore seaside
ocean sea
lake pond
river stream
wave breaker
sky firmament
sun sunshine
rain drizzle
snow snowfall
wind breeze
fire flame blaze
city town
garden yard
farm ranch
airport airfield
corner nook
edge rim border
middle center
top summit
bottom base
side flank
front face
back rear
group bunch cluster
pair couple duo
line row queue
piece slice chunk
pile heap stack
lot plenty
kind type sort
big large huge
small little tiny
tall high
short brief
long lengthy
wide broad
narrow slim thin
old aged elderly
new recent
young youthful
happy glad cheerful
smiling grinning beaming
sad unhappy sorrowful
angry mad furious
scared afraid frightened
tired weary exhausted
sleepy drowsy
beautiful lovely gorgeous
pretty cute
ugly hideous
clean spotless
dirty filthy grimy
wet damp soaked
dry arid
hot warm
cold chilly cool
fast quick speedy rapid
slow sluggish
bright vivid brilliant
dark dim gloomy
colorful multicolored
red crimson scarlet
purple violet
brown tan
gray grey
golden gilded
shiny glossy
empty vacant
full packed
open ajar
closed shut
several various multiple
many numerous
different distinct
similar alike
alone solo
near close
fancy ornate
plain simple
round circular
fuzzy furry
sitting seated
standing upright
walking strolling
running jogging sprinting
jumping leaping hopping
riding cycling
holding gripping grasping
carrying hauling
wearing sporting
eating munching devouring
drinking sipping
looking gazing peering
watching observing viewing
talking speaking chatting
laughing giggling chuckling
crying weeping
sleeping dozing napping
lying resting reclining
playing frolicking
throwing tossing hurling
catching grabbing
hitting striking
kicking booting
cutting slicing
cooking preparing
making creating
showing displaying
waiting lingering
flying soaring
swimming paddling
parked stationed
filled stuffed
covered coated
surrounded encircled
placed positioned
made built
"""


def _synonyms() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in SENSES.split("\n"):
        words = line.split()
        found |= {word: tuple(other for other in words if other != word) for word in words}
    return MappingProxyType(found)


SYNONYMS = _synonyms()
