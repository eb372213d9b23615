"""Verdicts in words: yes or no, positive or negative, in texts made to fool a search for words."""

import pytest

from mi_massive.tasks.verdicts import extract_sentiment, extract_verdict

# --- yes and no

VERDICTS = {
    "": None,
    "Yes": "yes",
    "Yes.": "yes",
    " **Yes**, it is.": "yes",
    "yes, it is not disputed": "yes",
    "Yes! No other city is.": "yes",
    "No": "no",
    "No.": "no",
    "no it is not": "no",
    "No, that is incorrect.": "no",
    "No, that's right next to it, but not there.": "no",
    "Nope.": "no",
    "Answer: No": "no",
    "The answer is no because it lies elsewhere.": "no",
    "Well, no, it is in France.": "no",
    "Yes or no? No.": "no",
    "Yes/No: Yes": "yes",
    "True.": "yes",
    "False.": "no",
    "That is correct.": "yes",
    "That is not correct.": "no",
    "That isn\u2019t correct.": "no",
    "It is not true": "no",
    "It is not incorrect.": "yes",
    "It is absolutely true that he plays tennis.": "yes",
    "I do not think that is correct.": "no",
    "That cannot be true.": "no",
    "That is a true statement.": "yes",
    "That is not a true statement.": "no",
    "Incorrect, he plays golf.": "no",
    "Not true.": "no",
    "The statement is false.": "no",
    "Is that true? It is false.": "no",
    "Is it correct?": None,
    "Of course not.": "no",
    "Correct answer: no": "no",
    "The correct answer is yes.": "yes",
    "The correct answer is no.": "no",
    "The right answer is no.": "no",
    "The correct answer is: No": "no",
    "The correct answer would be no": "no",
    "The correct answer is no, he plays golf.": "no",
    "The correct information is that Nairobi is in Kenya.": None,
    "The true statement is that he plays golf.": None,
    "A true statement.": "yes",
    "This is the correct answer.": "yes",
    "That is not the correct answer.": "no",
    "No doubt, yes.": "yes",
    "It is. He is not.": None,
    "Yes and no.": None,
    "Yes and no, it depends.": None,
    "It is neither true nor false.": None,
    "I don't know": None,
    "I know nothing.": None,
    "Nothing is known.": None,
    "No idea.": None,
    "There is no doubt about him.": None,
    "The answer is no longer clear.": None,
    "I have no information on that.": None,
    "I am not sure that is correct.": None,
    "It is partly true.": None,
    "It could be true.": None,
    "He is the right man for a true love story.": None,
    "It is right next to the river.": None,
    "Tokyo": None,
    "Norway": None,
    "Yesterday": None,
    "He was born elsewhere.": None,
    "The correct capital is Tokyo.": None,
    "Notable; correctly so": None,
}


@pytest.mark.parametrize("text", VERDICTS)
def test_the_first_clear_verdict_counts(text):
    assert extract_verdict(text) == VERDICTS[text]


# --- sentiment

SENTIMENTS = {
    "": None,
    "positive": "positive",
    "Negative.": "negative",
    "**Positive**": "positive",
    "This is a negative review.": "negative",
    "The review is not positive.": "negative",
    "It isn't negative.": "positive",
    "It has some positive elements, but overall it is negative.": "negative",
    "Positive or negative? Negative": "negative",
    "The sentiment is negative because it is dull, though some find it positive.": "negative",
    "It praises the positive aspects.": "positive",
    "There are positive and negative aspects.": None,
    "It is neither positive nor negative.": None,
    "It weighs positive aspects against negative aspects.": None,
    "It is not entirely positive aspects.": None,
    "Positively awful": None,
    "Mixed": None,
    "It is far from positive.": "negative",
    "This is anything but a negative review": "positive",
    "It isn't far from positive": "positive",
    "From afar, positive": "positive",
}


@pytest.mark.parametrize("text", SENTIMENTS)
def test_the_clear_sentiment_counts(text):
    assert extract_sentiment(text) == SENTIMENTS[text]
