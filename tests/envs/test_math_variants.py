"""Tables of right and wrong answers, in as many spellings as people use.

`gold → answer` in a line; a completion with a box of its own is taken as it is.
"""

import json

import pytest

from distil_jax.config.environments import MathConfig
from distil_jax.envs import math as maths
from distil_jax.envs.math_answers import boxes as math_boxes
from distil_jax.envs.math_answers import compare as math_answers
from distil_jax.envs.math_answers import number_words as math_words
from distil_jax.envs.math_answers import spelling as math_spelling
from distil_jax.envs.math_answers import units as math_units
from distil_jax.types import Status
from tests.paths import DATA

GSM8K = DATA / "gsm8k/test.jsonl"
ENVIRONMENT = maths.Math(MathConfig(seconds=60.0))  # of a loaded machine

RIGHT = r"""
18 → 18.
18. → 18
#### 18. → 18
#### 18. → 18.0
18 → 18.;
18 → =18
18 → $18$
18 → \(18\)
18 → \[18\]
18 → **18**
18 → \mathbf{18}
18 → \textbf{18}
18 → \text{18}
18 → \mathrm{18}
18 → {18}
18 → \boxed{\boxed{18}}
18 → \displaystyle 18
18 → \Large 18
18 → \underline{18}
18 → \textcolor{red}{18}
18 → \color{red}{18}
18 → +18
18 → 18.0
18 → 18\,
18 → \ 18
18 → ~18
18 → 018
18 → １８
18 → 18 \\
5 → \large 5
5 → \left(5\right)
5 → \boxed 5
5 → \boxed5
5 → $\boxed 5$.
12 → \boxed 12
\frac12 → \boxed\frac12
\pi → $\boxed\pi$
5 → \fbox{5}
5 → \fbox 5
5 → \boxed  {5}
5 → \boxed{5} (I box it in \boxed as asked)
So $\boxed 2$. → 2
So $\boxed 2$. → \boxed 2$.
5 → 5 dollars
5 → \$5
5 → $5
5 → \$5.00
5 → 5 USD
5 → 5\$
5 → 5\text{ dollars}
5 → 5\text{ dollars per day}
5 → 5 dollars per day
5 dollars → 5
\$5 → 5
\$5 → 5 dollars
5 dollars → \$5
-5 → -\$5
-5 → \$-5
5 → €5
5 → 5 euros
70000 → \$70,000
70000 → 70,000
70000 → 70{,}000
70000 → 70\,000
70000 → 70 000
70000 → 70,\!000
70000 → 7 \times 10^4
70,000 → 70000
1234567 → 1,234,567.00
1234.5 → 1,234.50
5 → 5 apples
5 → 5 \text{ apples}
5 → 5~\text{apples}
5 → 5\ \mathrm{apples}
20 → 20 students
3 → 3 \text{ different ways}
5 → 5 cm
5 → 5cm
5 → 5\text{ cm}
5 → 5\,\mathrm{cm}
5 cm → 5
5 cm → 5 cm
5 cm → 5\text{ centimeters}
5 cm → 50 mm
5 cm → 0.05 m
5 m → 500 cm
12 inches → 1 foot
2 hours → 120 minutes
1 km → 1000 meters
2 kg → 2000 g
1 liter → 1000 mL
1 liter → 1000 cm^3
5 → 5\text{ cm}^2
5\text{ cm}^2 → 5
25\pi\text{ cm}^2 → 25\pi
25\pi → 25\pi \text{ square units}
2\sqrt{3}\text{ cm} → 2\sqrt{3}
2\sqrt{3} → 2\sqrt{3}\text{ cm}
5 → 5\text{ m/s}
5\text{ m/s} → 5\text{ meters per second}
36 km/h → 10 m/s
60 mph → 60 miles per hour
150 cents → \$1.50
5000000 → 5 million
5 million → 5000000
2.5 million → 2,500,000
24 → 2 dozen
12.5 → 12.5\%
12.5 → 12.5%
12.5 → 12.5 percent
12.5 → 12.5\text{ percent}
12.5\% → 12.5
12.5\% → 0.125
12.5\% → 12.50\%
0.125 → 12.5\%
50 → 50\%
50\% → \frac12
50\% → \frac{1}{2}
\frac{1}{4} → 25\%
20 → 20\text{ percent}
0 → 0\%
3\times10^8 → 3e8
3\times10^8 → 3E8
3\times10^8 → 3e+8
3\times10^8 → 300000000
3\times10^8 → 300,000,000
3\times10^8 → 3 \cdot 10^{8}
3\times10^8 → 3.0 × 10^8
3\times10^8 → 3*10^8
3\times10^{-8} → 3e-8
3\times10^{-8} → 0.00000003
1.5e3 → 1500
10^6 → 1000000
10^6 → 1e6
10^{-7} → 0.0000001
\frac13 → 0.\overline{3}
\frac13 → 0.\bar{3}
\frac13 → 0.(3)
\frac13 → 0.333...
\frac13 → 0.3333\ldots
\frac13 → 0.333333
\frac13 → \frac{2}{6}
\frac13 → 1/3
\frac13 → ⅓
\frac13 → \dfrac{1}{3}
\frac13 → \tfrac13
0.\overline{3} → \frac13
0.\overline{3} → 1/3
\frac{1}{7} → 0.\overline{142857}
\frac{611}{495} → 1.2\overline{34}
\frac{1}{70} → 0.014286
-\frac13 → -0.\overline{3}
-\frac12 → \frac{-1}{2}
-\frac12 → -0.5
-\frac12 → −½
\frac{3}{2} → 1\frac{1}{2}
\frac32 → 1 1/2
\frac32 → 1½
\frac32 → 1.5
1\frac12 → \frac{3}{2}
90 → 90°
90 → 90^\circ
90 → 90^{\circ}
90 → 90 degrees
90 → 90\text{ degrees}
90° → 90
90^\circ → 90°
90 degrees → 90°
\frac{\pi}{2} → 90^\circ
20 degrees → 20°C
20^\circ C → 20 degrees Celsius
\pi → π
\pi → 3.14159265
\sqrt{2} → √2
\sqrt2 → 1.41421356
\sqrt{8} → 2\sqrt{2}
x^2 → x²
x^2+2x+1 → (x+1)^2
2^{10} → 1024
\frac{2^{100}+1}{3\cdot2^{101}} → \frac{1+2^{100}}{3\cdot2^{101}}
\frac{1}{2^{56}} → 2^{-56}
\frac{1}{2^{56}} → \frac{1}{72057594037927936}
0.0000001 → 10^{-7}
0.0000001 → 1e-7
\binom{10}{3} → 120
5! → 120
(2,\infty) → x>2
x>2 → (2,\infty)
(2,\infty) → 2<x
(2,\infty) → y>2
(2,\infty) → (2,+\infty)
(2,\infty) → (2,∞)
(2,\infty) → x \gt 2
(2,\infty) → \{x \mid x>2\}
(2,\infty) → \{x : x>2\}
[2,\infty) → x\geqslant2
(2,\infty) → x \in (2,\infty)
x\le3 → (-\infty,3]
(-\infty,3] → x \leq 3
(-\infty,3] → x ≤ 3
(2,5) → 2<x<5
2<x<5 → (2,5)
2<x<5 → 5>x>2
[2,5] → 2\le x\le5
[2,5) → 2\le x<5
x\in[2,5) → [2,5)
x \ge 0 → [0,\infty)
(-\infty,1)\cup(2,\infty) → x<1 \text{ or } x>2
(-\infty,1)\cup(2,\infty) → x<1 or x>2
(1,3) → x>1 \text{ and } x<3
x<1 \text{ or } x>2 → (-\infty,1)\cup(2,\infty)
x<1 \text{ or } x>2 → x>2 \text{ or } x<1
2,5 → \boxed{2} and \boxed{5}
2,5 → $\boxed{5}$ and $\boxed{2}$
2,5 → $x = \boxed{2}$ or $x = \boxed{5}$.
2,5 → \boxed{2}, \boxed{5}
2,5 → \boxed{2} \boxed{5}
2,5 → One root is $\boxed{2}$. The other one is $\boxed{5}$.
2,5 → \(x_1=\boxed{2}\) and \(x_2=\boxed{5}\)
2,5 → $x=\boxed{2}\quad\text{and}\quad x=\boxed{5}$
2,5 → First \boxed{7}. Wrong. It is \boxed{2} and \boxed{5}.
2,5 → \boxed{2,5}
2,5 → \boxed{5 \text{ and } 2}
2,5 → x=2, x=5
2,5 → x=2 \text{ or } x=5
2,5 → \{2,5\}
2, 5 → 5,2
\{5\} → 5
\{\sqrt{2}\} → \sqrt{2}
\sqrt{2} → \{\sqrt{2}\}
\{\sqrt2, \sqrt3\} → \{\sqrt3, \sqrt2\}
(\sqrt2, \sqrt3) → (\sqrt{2},\sqrt{3})
(1,2) → 1,2
2, 5 → 2;5
2 and 5 → 2,5
\{2,5\} → \boxed{2}, \boxed{5}
We get \boxed{2} and \boxed{5}. → 5, 2
1,2,3 → \boxed{3}, \boxed{2}, and \boxed{1}
\frac12,\frac13 → 1/3, 0.5
1, 200 → 200, 1
1, 200 → 1,200
1, 200 → \{1, 200\}
1\pm\sqrt2 → 1+\sqrt2, 1-\sqrt2
(1,2) → (1, 2)
(1,2) → \left(1,2\right)
(\frac12,3) → (0.5,3)
ABC → ABC
ABC → \text{ABC}
\text{ABC} → ABC
\text{Monday} → Monday
Monday → \text{monday}
\text{yes} → Yes
\text{A and C} → A, C
\text{A and C} → \text{C and A}
A, C → \text{A and C}
\text{no solution} → \emptyset
\emptyset → \varnothing
\emptyset → \text{No solutions}
\emptyset → \{\}
18 → \approx 18
\text{(B)} → B
B → \text{(B)}
B → (B)
\text{even} → even
ab → ba
xy → yx
2ab → 2ba
x=5 → 5
5 → x=5
5 → x = 5
5 → n = 5\text{ cm}
f(x)=x^2 → x^2
y=2x+1 → y=1+2x
y = 2x+1 → 2x+1
\begin{pmatrix}1\\2\end{pmatrix} → \begin{pmatrix}1\\2\end{pmatrix}
3:4 → 3:4
\frac13 → 0.\dot{3}
0.5\% → 0.5
5 → 5.0 dollars
3\times10^8\text{ m/s} → 3e8 m/s
\text{5 cm} → 5
5 → \text{5 cm}
x=5\text{ cm} → 5
\infty → ∞
1011_2 → 1011_{2}
\frac{11}{2} → five and a half
2.5 → two and a half cups
\text{one-to-one} → one-to-one
3 → three
-3 → negative three
3/4 → three quarters
0.75 → three fourths
25 → twenty-five percent
7000 → seven thousand
five → Five
five → \text{five}
noon → 12:00 PM
8 a.m. → 8:00
8 a.m. → 8
8 → 8 a.m.
1:2:3 → 1 : 2 : 3
2:3:4 → 4:6:8
3:2 → 3 to 2
1011_2 → 1011_{\text{two}}
a_1 → a_{1}
10_{12} → 10_{12}
5 feet 6 inches → 5.5 feet
5'6" → 5 ft 6 in
\$5.50 → 5 dollars and 50 cents
4 cm and 5 cm → 5 cm, 4 cm
4 kg and 5 cm → 5 cm and 4 kg
5 red, 3 blue → 3 blue, 5 red
5 red, 3 blue → 5, 3
4 \text{ apples and } 6 \text{ pears} → 6 \text{ pears and } 4 \text{ apples}
4 \text{ apples and } 6 \text{ pears} → 4, 6
\frac{-1\pm\sqrt5}{2} → \frac{-1\pm\sqrt{5}}{2}
\frac{-1\pm\sqrt5}{2} → -\frac{1}{2}\pm\frac{\sqrt{5}}{2}
2\pm3i → 2+3i, 2-3i
2\pm 3i → 2-3i, 2+3i
5 → 5=x
x=2, y=3 → (2,3)
x=2, y=3 → 2, 3
(2,3) → x = 2, y = 3
x=2, x=-2 → -2, 2
x=2, x=-2 → x=\pm 2
x=2 or x=3 → 3, 2
a=1, b=2 → b=2, a=1
(a,b)=(1,2) → (1,2)
(x,y)=(1,2) → x=1,y=2
(1,2) → (x,y)=(1,2)
\text{(C)} 12 → C
C → \text{(C) } 12
C → (C) 12
C → C. 12
C → C: 12
12 → \textbf{(C) }12
5 → 5 more
x → \text{answer: }x
\mathbb{R} → \text{all real numbers}
\infty → infinity
5 → ¥5
2\pi → 2pi
\sqrt{3}/2 → sqrt(3)/2
\sqrt{3}/2 → sqrt{3}/2
x^{12} → x**12
x^2+1 → x**2+1
{5 \choose 2} → 10
\binom{5}{2} → {5 \choose 2}
\begin{pmatrix}1&2\\ 3&4\end{pmatrix} → \begin{pmatrix} 1&2\\3&4 \end{pmatrix}
6 → 6 sq. units
6 → 6\text{ units}^2
25\ \frac{\text{m}}{\text{s}} → 25 m/s
0.\dot{1}\dot{4} → \frac{14}{99}
0.\dot{1}2\dot{4} → \frac{124}{999}
0.\dot{3} → \frac13
5 → 5 (apples)
1200 → twelve hundred
1,2 → x_1=2, x_2=1
1011_2 → (1011)_2
2A_{16} → 2a_{16}
15:30 → 3:30 PM
10:00 \text{ a.m.} → 10 a.m.
y=2x+3 → y-2x-3=0
(1,2,3) → \langle 1,2,3 \rangle
5 → \mathbf 5
5 → 5\text{.}
5 → 5 \checkmark
5 → 5\tag{1}
5 → 5\phantom{0}
5 → \begin{aligned}5\end{aligned}
5 → \text{The answer is } 5
5 → exactly 5
120 → one hundred twenty
\text{does not exist} → DNE
25 → 25\,\frac{\text{miles}}{\text{hour}}
1.5 hours → 1 hour and 30 minutes
5 → 5 blue
20 students → 20 people
5 red → 5 red balls
5 red balls → 5 balls
\$5 → \$5 profit
5 miles north → 5 miles
5 boys and 3 girls → 3 girls and 5 boys
3:30 → 3:30
3:00 → 3
3:2 → 6:4
3:10 → 3/10
2:3 → 10:15
June 20th → June 20
June 20th → 20 June
June 20th → the 20th of June
June 20th → June 20^{\text{th}}
June 20th → Jun. 20
June 20th → Saturday, June 20
June 20th → June 20, 2020
Saturday, June 20 → June 20th
June 20 → \text{June 20th}
June 20, 2020 → June 20th, 2020
May 5 → 5 May
"""

WRONG = r"""
5 red → 5 blue
5 apples → 5 oranges
5 boys → 5 girls
5 miles north → 5 miles south
\$5 profit → \$5 loss
5 minutes early → 5 minutes late
5 more → 5 fewer
5 gray → 5 blue
3:30 → 1/10
3:30 → 0.1
3:30 → 1:10
3:30 → 6:60
3:30 → 3
3:05 → 0.6
June 20th → June 21
June 20th → June 2
June 20th → July 20
June 20th → 20
June 20th → June
June 20th → Foo, June 20
June 20, 2020 → June 20
June 20, 2020 → June 20, 2021
Saturday, June 20 → Sunday, June 20
March 3 → Mars 3
20 → June 20
18 → 18.5
18 → 1.8
18 → 18..5
18 → 1 8
18 → 1,8
18 → 1 8.
18 → 18 19
18 → 18,19
18 → 18 or 19
18 → 18 and 19
18 → \boxed{18} and \boxed{19}
180 → 18 0
100 → 1 00
1234 → 12 34
18 → 18!
18 → 18x
18 → 18 x
18 → 18 ab
18 → -18
18 → 18\pi
18 → 18 \cdot 2
\text{no solution} → 0
\emptyset → 0
\emptyset → \{0\}
\text{A and C} → A
\text{A and C} → \text{A and B}
\text{A and C} → A, B, C
A → \text{A or B}
18 → 18^2
18 → 18 squared
18 → 18 hundred
18 → 18 million
18 → 18\text{ million}
18 → 18 over 2
18 → 18\text{ or }19
18 → about 18 or 19
18 → between 18 and 19
18 → 18 → 19
18 → \boxed 19
18 → \boxed 1
18 → \fbox{19}
2,5 → \boxed{2}
2,5 → \boxed{5}
2,5 → \boxed{2} and \boxed{6}
2,5 → \boxed{2}, \boxed{5}, \boxed{6}
2,5 → \boxed{1}, \boxed{2}, and \boxed{5}
2,5 → 2,5,5
2,5 → 2.5
2,5 → 25
5 → \boxed{5} or \boxed{2}
2,2 → 2
1, 200 → 1200
1, 200 → 1200.0
1, 200 → 1 200
1200 → 1, 200
1200 → 1; 200
1,200 → 1, 200
1, 2, 3 → 123
\frac{2^{100}+1}{3\cdot2^{101}} → \frac{1}{3\cdot2^{101}}
\frac{2^{100}+1}{3\cdot2^{101}} → \frac{1}{6}
\frac{2^{100}+1}{2^{100}} → 1
\frac{1}{2^{56}} → \frac{1}{2^{57}}
\frac{1}{2^{56}} → 0
\frac{1}{2^{56}} → -\frac{1}{2^{56}}
2^{-56} → 2^{-57}
2^{100}+1 → 2^{100}
\frac{x}{2^{56}} → \frac{x}{2^{57}}
\frac{\pi}{2^{60}} → \frac{\pi}{2^{61}}
\sqrt{2}\cdot10^{-20} → 0
\frac{\sqrt{2}}{10^{20}} → \frac{\sqrt{3}}{10^{20}}
\pi+10^{-20} → \pi
(\frac{1}{2^{56}},1) → (\frac{1}{2^{57}},1)
\frac{1}{2^{56}}, 1 → \frac{1}{2^{57}}, 1
\begin{pmatrix}2^{-56}\\2\end{pmatrix} → \begin{pmatrix}2^{-57}\\2\end{pmatrix}
0.0000001 → 0.0
0.0000001 → 0
0.0000001 → 0.0000002
10^{-7} → 0.0
10^{-7} → 0
10^{-8} → 10^{-9}
1e-9 → 0.0
4.9e-7 → 0.0
\frac{1}{3000000} → 0.0
\frac{1}{30000000} → 0.0000001
\frac{\pi}{10^8} → 0.0
e^{-20} → 0.0
\frac{1}{7\cdot10^{7}} → 0.00000001
0 → 0.0000001
0 → 10^{-7}
0.5 → 0.5000001
\frac12 → 0.5000001
\frac13 → 0.33
\frac13 → 0.3
\frac13 → 0.34
\frac13 → 0.\overline{4}
\frac13 → 0.\overline{30}
\frac13 → 3
1234567890123456789 → 1234567890123456788
123456789012345678901234567890 → 123456789012345678901234567891
ABC → CBA
ABC → ACB
ABC → BAC
ABC → AB
ABCD → DCBA
\text{ABC} → CBA
ABC → \text{CBA}
\text{cat} → act
\text{no} → on
\text{east} → seat
DEF → FED
yes → no
A → B
A → AB
5 cm → 5 m
5 cm → 5 mm
5 cm → 5 km
5\text{ cm} → 5\text{ m}
5 \mathrm{cm} → 5 \mathrm{m}
5 cm → 5\text{ meters}
5 cm → 5 inches
5 cm → 5 kg
5 cm → 5 cm^2
5\text{ cm}^2 → 5\text{ cm}^3
5\text{ cm}^2 → 5\text{ m}^2
5 kg → 5 g
5 kg → 5 pounds
5 hours → 5 minutes
5 minutes → 5 seconds
5 days → 5 weeks
5 dollars → 5 cents
\$5 → 5 cents
\$5 → 5 euros
\$5 → €5
5 feet → 5 inches
5 miles → 5 km
60 mph → 60 km/h
5\text{ m/s} → 5\text{ km/h}
5 liters → 5 mL
20^\circ C → 20^\circ F
2\sqrt{3}\text{ cm} → 2\sqrt{3}\text{ m}
90^\circ → 90 radians
5 cm → 6 cm
\text{5 cm} → \text{5 m}
x=5\text{ cm} → x=5\text{ m}
5 cm → 5 m.
$5$ cm → $5$ m
5\,\mathrm{cm} → 5\,\mathrm{mm}
5 sq cm → 5 cm
5 \text{ square feet} → 5 \text{ feet}
5 cm → 0.5 m
5 m → 5x
3t → 3
x+2t → x+2
12.5 → 1.25\%
12.5 → 0.125\%
12.5 → 12.6\%
0.5 → 0.5\%
50 → 0.5
50\% → 5
50\% → 0.05
50\% → 500\%
3\times10^8 → 3e7
3\times10^8 → 3e9
3\times10^8 → 3e-8
3\times10^8 → 3.1e8
3\times10^8 → 38
3\times10^8 → 3e
90 → 90.5°
90° → 91°
\frac32 → 1 1/3
\frac32 → 1\frac{1}{3}
\frac{1}{2} → 12
1\frac12 → \frac{1}{2}
(2,\infty) → x<2
(2,\infty) → x\ge2
(2,\infty) → x>3
(2,\infty) → [2,\infty)
(2,\infty) → (3,\infty)
x>2 → [2,\infty)
x>2 → x<2
x>2 → (-\infty,2)
[2,5] → 2<x<5
[2,5] → (2,5)
(2,5) → 2\le x\le5
2<x<5 → 2<x<6
(-\infty,1)\cup(2,\infty) → x<1
x<1 \text{ or } x>2 → (1,2)
x<1 \text{ or } x>2 → x<1
(1,3) → x>1 \text{ or } x<3
(\frac{1}{2^{56}},1] → (\frac{1}{2^{57}},1]
x>\frac{1}{2^{56}} → x>\frac{1}{2^{57}}
18 → 18 + 19 \cdot 0.1
(1,2) → (2,1)
(1,2,3) → (1,3,2)
x=5 → y=5
x=5 → x=6
x+1 → x-1
x → y
x^2 → 2x
\frac{a}{b} → \frac{b}{a}
\infty → -\infty
3:4 → 4:3
five → six
five → 50
five → five hundred
5 → fifteen
5 → five and a half
2 → two and a half
Two Brothers → Two Sisters
Two Brothers → 3
\text{one} → \text{none}
one-to-one → 1
\text{one-to-one} → \text{two-to-one}
3 → third
3 → three or four
3 → three to five
34 → thirty-five
7 → seven thousand
21 → twenty
20 → twenty one
five → 5.5
3:30 PM → 4:30 PM
3:30 PM → 3:30 a.m.
3:30 PM → 3:03 PM
noon → 12:00 AM
15:30 → 5:30 PM
15:30 → 3:30 AM
8 a.m. → 8 p.m.
8 a.m. → 9
1:2:3 → 1:2
1:2:3 → 3:2:1
3:2 → 2 to 3
1011_2 → 1011_{10}
1011_2 → 1010
1,011_2 → 1_2
A_{16} → B_{16}
a_1 → a_2
10_2 → 10_3
2 → 10_2
1 hour 30 minutes → 1 hour 30 seconds
5 feet 6 inches → 5 feet
5 feet 6 inches → 5.6 feet
5'6" → 5 ft 7 in
\$5.50 → 5 dollars and 5 cents
5 dollars → 5 dollars and 50 cents
4 kg and 5 cm → 4 cm and 5 kg
5 red, 3 blue → 3 red, 5 blue
4 \text{ apples and } 6 \text{ pears} → 6 \text{ apples and } 4 \text{ pears}
\frac{-1\pm\sqrt5}{2} → \frac{-1+\sqrt5}{2}
\frac{-1\pm\sqrt5}{2} → \frac{-1\pm\sqrt5}{3}
2\pm3i → 2+3i
\pm 2 → \pm 3
\pm 2 → 2
5 → 6=x
y=2x+3 → y-2x+3=0
y=2x+3 → 2x+3=0
x=5 → 2x=10
x=5 → 5=y
x=2, y=3 → (3,2)
x=2, y=3 → 3, 2
(2,3) → x = 3, y = 2
(a,b)=(1,2) → (2,1)
\text{(C)} 12 → B
C → \text{(B)} 12
12 → \text{(C) } 13
(C) → (C) or (D)
A → A and B
A → A, B
5 → about 6
5 → at least 5
5 → more than 5
5 → 5 more than x
x → \text{answer: }y
\text{about} → 5
\mathbb{R} → \text{all integers}
\text{all real numbers} → \text{no real numbers}
\infty → negative infinity
¥5 → \$5
2\pi → 2pi^2
x^{12} → x**2
{5 \choose 2} → 5
\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} → \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} → \begin{pmatrix} 1 & 2 \end{pmatrix}
25\ \frac{\text{m}}{\text{s}} → 25 m
5 → \frac{5}{2}
5 → 5\frac{a}{b}
0.\dot{1}\dot{4} → 0.14
5 → 5 (mod 7)
pi → 3
\text{Yes} → \text{No, } 5
100 → 1 hundred and 5
(1,2) → x=1, y=3
f(2)=5, g(2)=6 → f(2)=6, g(2)=5
x_1=1, x_2=2 → (2,1)
\begin{pmatrix}1&2\\ 3&4\end{pmatrix} → \begin{pmatrix}1&3\\ 2&4\end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} → \begin{pmatrix} 2 \\ 1 \end{pmatrix}
243_5 → 243_6
f(2)=5 → f(2)=6
P(A)=\frac12 → P(B)=\frac12
1.5 hours → 1 hour and 50 minutes
"""


def lines(table):
  return [tuple(x.split(" → ", 1)) for x in table.strip().split("\n")]


def judged(gold, answer):
  completion = answer if "box" in answer else f"It is $\\boxed{{{answer}}}$."
  problem = ENVIRONMENT.problem({"prompt": "q", "answer": gold})
  return ENVIRONMENT.judge(problem, completion)


@pytest.mark.parametrize(("table", "reward"), [(RIGHT, 1), (WRONG, 0)])
def test_every_line_of_a_table(table, reward):
  found = [(pair, judged(*pair)) for pair in lines(table)]
  failed = [x for x in found if x[1].reward != reward]
  assert not failed, "\n".join(f"{pair} {said}" for pair, said in failed)


def test_all_references_of_gsm8k_in_ten_spellings_and_mutations():
  texts = GSM8K.read_text(encoding="utf-8").splitlines()
  rows = [json.loads(text) for text in texts]
  assert len(rows) == 400
  spellings = [
    "{:,}.00",
    "\\${:,}",
    "{0} \\text{{ eggs}}",
    "\\frac{{{0}}}{{1}}",
    "{0} + 0",
    "{0}.",
    "{0} dollars",
    "**{0}**",
    "x = {0}",
    "\\large {0}",
  ]
  for i, row in enumerate(rows):
    found = ENVIRONMENT.problem(
      {"prompt": row["question"], "answer": row["answer"]}, i
    )
    value = int(found.answer.replace(",", ""))
    assert ENVIRONMENT.judge(found, found.solution).reward == 1.0
    for spelling in spellings:
      written = f"\\boxed{{{spelling.format(value)}}}"
      verdict = ENVIRONMENT.judge(found, written)
      assert verdict.reward == 1.0, (found.answer, written, verdict)
    # A digit more, less or other, a sign, a space, another order of magnitude.
    digits = str(abs(value))
    other = digits[:-1] + str((int(digits[-1]) + 5) % 10)
    mutations = [f"{value + 1}", f"{value}.5", f"{value} + 1", f"{value}0"]
    mutations += [other, f"{digits[0]} {digits}", f"{value}, {value + 1}"]
    mutations += [f"{value} million", f"{value}e3"]
    for wrong in mutations:
      if value or wrong not in ("00", "0 million", "0e3"):
        judged_wrong = ENVIRONMENT.judge(found, f"\\boxed{{{wrong}}}")
        assert judged_wrong.reward == 0.0, (found.answer, wrong)


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    (r"So it is $\boxed{2$.", "box that cannot be read"),
    (r"It is \boxed .", "box that cannot be read"),
    ("She sells 9 eggs, so she makes 18 dollars.", "a text of 7 words"),
    ("The answer is 18", "a text of 3 words"),
    (" ".join(["word"] * 16), "a text of 16 words"),
    (r"\frac{1}{", "braces of answer"),
    ("so #### ", "no answer"),
  ],
)
def test_a_reference_that_cannot_be_read_is_an_error(answer, message):
  with pytest.raises(ValueError, match=message):
    ENVIRONMENT.problem({"prompt": "q", "answer": answer})


@pytest.mark.parametrize(
  ("completion", "reward"),
  [
    (r"<think>It is \boxed{5}", 0),
    (r"<think>a</think><think>It is \boxed{5}", 0),
    (r"\boxed{5}</think><think>or \boxed{6}", 1),
    (r"<think>\boxed{6}</think>It is \boxed{5}", 1),
    (r"\boxed{6}</think>It is \boxed{5}", 1),
    (r"It is \boxed{5}.<think>Or \boxed{6}?", 1),
  ],
)
def test_a_thought_that_is_never_closed_has_no_answer(completion, reward):
  verdict = judged("5", completion)
  assert verdict.reward == reward
  if not reward:
    assert verdict.status is Status.UNPARSABLE
    assert "no answer" in verdict.feedback


def test_a_decimal_comma_is_read_as_two_values_and_the_feedback_says_so():
  for gold, answer, is_said in (
    ("3.14", "3,14", True),
    ("3.14", "3.15", False),
    ("1200", "1,300", False),
    ("3, 14", "3, 15", False),
  ):
    verdict = judged(gold, answer)
    assert verdict.status is Status.WRONG
    assert ("with a point" in verdict.feedback) == is_said, answer


def test_numbers_in_words():
  value = math_words.value
  assert value("two thousand and three") == 2003
  assert value("one million two hundred thousand") == 1_200_000
  for text in ("one twenty", "hundred", "twenty ten", "zero five", "and", ""):
    assert value(text) is None, text
  assert math_words.in_digits("five apples") == "5 apples"
  assert math_words.in_digits("apples") is None


def test_units_are_products_of_powers():
  assert math_units.read("m/s^2") == math_units.read("meters per s squared")
  assert math_units.read("sq ft") == math_units.read("ft^{2}")
  assert math_units.read("L") == math_units.read("cubic decimeters")
  assert math_units.read("eggs") is None
  assert math_units.read("") is None


def test_lists_are_split_outside_of_brackets_and_numbers():
  assert math_answers.items("(1,2), (3,4)") == ["(1,2)", "(3,4)"]
  assert math_answers.items(r"1,200 \text{ and } 3") == ["1,200", "3"]
  assert math_answers.items("1, 200") == ["1", "200"]
  assert math_answers.items(r"\{a; b\}") == ["a", "b"]


def test_a_spelling_is_removed_and_nothing_else():
  for text in ("x+1", "(1,2)", r"\{1,2\}", "0.333...", "5!", "f(x)", "a.b"):
    assert math_spelling.plain(text) == text
  assert math_spelling.plain(r"$\left(\dfrac12\right)$.") == r"(\frac{1}{2})"


def test_boxes_of_one_answer():
  assert math_boxes.last_run(r"\boxed{1}. So \boxed{2} or \boxed{3}") == [
    "2",
    "3",
  ]
  assert math_boxes.last_run("none") == []
