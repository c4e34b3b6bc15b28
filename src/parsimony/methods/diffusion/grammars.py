"""Grammars by name, in lark's notation; texts are bytes, so a character of another script is several.

They stand here and not in files of their own, because code is what records know the version of.
"""

GRAMMARS = {
    "json": r"""
// JSON objects (RFC 8259) of strings, numbers, literals, lists and objects.
start: object
?value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" (pair ("," pair)*)? "}"
pair: STRING ":" value
array: "[" (value ("," value)*)? "]"
STRING: /"[a-z ]*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?/
BLANK: /[ \n]+/
%ignore BLANK
""",
    "code": r"""
// A small C-like language: one function of integers.
start: "int" NAME "(" (parameter ("," parameter)*)? ")" block
parameter: "int" NAME
block: "{" statement* "}"
?statement: declaration | assignment | branch | loop | leave
declaration: "int" NAME "=" expression ";"
assignment: NAME "=" expression ";"
branch: "if" "(" condition ")" block ("else" block)?
loop: "while" "(" condition ")" block
leave: "return" expression ";"
condition: expression COMPARE expression
?expression: term (SIGN term)*
?term: atom (TIMES atom)*
?atom: NAME | NUMBER | "(" expression ")"
NAME: /[a-z]+/
NUMBER: /0|[1-9][0-9]*/
COMPARE: /[<>]|==|!=/
SIGN: /[+-]/
TIMES: /[*\/]/
BLANK: /[ \n]+/
%ignore BLANK
""",
    "smiles": r"""
// Molecules as OpenSMILES writes them: chains of atoms with branches and rings; valences are not counted.
start: chain END?
chain: member ((bond | ".")? member)*
member: atom ring* branch*
ring: bond? (DIGIT | "%" DIGIT DIGIT)
branch: "(" (bond | ".")? chain ")"
bond: "-" | BOND
atom: ORGANIC | "*" | "[" number? symbol chirality? hydrogens? charge? (":" number)? "]"
symbol: ORGANIC | ELEMENT | "H" | "*"
chirality: "@" "@"?
hydrogens: "H" DIGIT?
charge: "+" ("+" | DIGIT | FIFTEEN)? | "-" ("-" | DIGIT | FIFTEEN)?
number: DIGIT (DIGIT DIGIT?)?
DIGIT: /[0-9]/
FIFTEEN: /1[0-5]/
BOND: /[=#$:\/\\]/
ORGANIC: /Br?|Cl?|[NOPSFI]|[bcnops]/
ELEMENT: /A[cglmrstu]|B[aehik]|C[adefmnorsu]|D[bsy]|E[rsu]|F[elmr]|G[ade]|H[efgos]|I[nr]|Kr?|L[airuv]|M[cdgnot]/
    | /N[abdehiop]|O[gs]|P[abdmortu]|R[abefghnu]|S[bcegimnr]|T[abcehilms]|[UVWY]|Xe|Yb|Z[nr]|se|as|te/
END: /\n(```)?\n?/
""",
    "cpp": r"""
// C++ without classes: includes, and functions of statements.  Types and names are not checked, nor precedence, and
// operators are their characters, so that no text can be cut into terminals in two ways.
start: part* "```"?
?part: INCLUDE | COMMENT | using | alias | function | variables
using: "using" "namespace"? qualified ";"
alias: "typedef" type NAME ";"
function: type NAME "(" parameters? ")" (block | ";")
parameters: parameter ("," parameter)*
parameter: type NAME? ("[" "]")? ("=" expression)?
type: "const"* (sized | qualified) "const"? ("*" | "&")*
sized: size+ qualified?
size: "unsigned" | "signed" | "long" | "short"
qualified: (":" ":")? piece (":" ":" piece)*
piece: NAME ("<" type ("," type)* ">")?
block: "{" statement* "}"
?statement: expressions? ";" | block | variables | branch | loop | leave | choice | COMMENT
variables: "static"? type variable ("," variable)* ";"
variable: ("*" | "&")* NAME ("[" expression? "]")* ("=" expression | "(" arguments ")" | list)?
branch: "if" "(" expressions ")" statement ("else" statement)?
loop: "while" "(" expressions ")" statement | "do" statement "while" "(" expressions ")" ";"
    | "for" "(" (variables | expressions? ";") expressions? ";" expressions? ")" statement
    | "for" "(" type NAME ":" expression ")" statement
leave: ("return" expression? | "break" | "continue") ";"
choice: "switch" "(" expression ")" "{" (label statement*)* "}"
label: ("case" expression | "default") ":"
expressions: expression ("," expression)*
arguments: expressions?
expression: operand (operator operand)* ("?" expression ":" expression)?
operand: prefix* primary postfix*
prefix: "-" | "+" | "!" | "~" | "*" | "&" | "not" | "(" type ")"
primary: qualified | NUMBER | CHARACTER | STRING+ | "(" expressions ")" | list | function_object | size+
list: "{" (expressions ","?)? "}"
function_object: "[" captures "]" ("(" parameters? ")" ("-" ">" type)?)? block
captures: (capture ("," capture)*)?
capture: "=" | "&" NAME? | NAME ("=" expression)?
postfix: "+" "+" | "-" "-" | "(" arguments ")" | "[" expression "]" | ("." | "-" ">") NAME
operator: ("+" | "-" | "*" | "/" | "%" | "&" | "|" | "^" | "=" | "!" | shift) "=" | shift "="?
    | "+" | "-" | "*" | "/" | "%" | "&" "&"? | "|" "|"? | "^" | "=" | "and" | "or" | "xor"
shift: "<" "<"? | ">" ">"?
INCLUDE: /#[ ]*include[ ]*(<[^>\n`]*>|"[^"\n`]*")/
COMMENT: /\/\/[^\n`]*\n|\/\*([^*`]|\*+[^*\/`])*\*+\//
NAME: /[a-zA-Z_][a-zA-Z_0-9]*/
NUMBER: /([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?[a-zA-Z]*|0[xXbB][0-9a-fA-F]+[a-zA-Z]*/
CHARACTER: /'([^'\\\n`]|\\.[0-7]?[0-7]?){1,4}'/
STRING: /"([^"\\\n`]|\\[^\n`])*"/
BLANK: /[ \t\r\n]+/
%ignore BLANK
""",
}
