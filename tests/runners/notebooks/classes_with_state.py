# %%
from collections import Counter, defaultdict
from dataclasses import dataclass, field


class Account:
    opened = 0

    def __init__(self, owner):
        self.owner, self.balance, self.log = owner, 0, []
        Account.opened += 1

    def pay_in(self, amount):
        self.balance += amount
        self.log.append(("in", amount))
        return self


@dataclass
class Bank:
    accounts: dict = field(default_factory=dict)
    rates: list = field(default_factory=lambda: [0.01])
# %%
ada, bob = Account("Ada"), Account("Bob")
Account.opened
# %%
ada.pay_in(100)
ada.balance
# %%
bank = Bank({"ada": ada, "bob": bob})
bank.accounts["ada"] is ada
# %%
for account in bank.accounts.values():
    account.pay_in(10)
[ada.balance, bob.balance]
# %%
bank.rates.append(0.02)
bank.closed = False
vars(bank).keys()
# %%
cleo = Account("Cleo")
bank.accounts[cleo.owner.lower()] = cleo
print(len(bank.accounts), Account.opened)
# %%
bank.accounts["ada"].log.clear()
ada.log
# %%
def transfer(source, target, amount):
    source.balance -= amount
    target.balance += amount
    transfer.count += 1


transfer.count = 0
# %%
transfer(ada, cleo, 25)
ada.balance, cleo.balance, transfer.count
# %%
Account.currency = "EUR"
ada.currency
# %%
class Saver(Account):
    def pay_in(self, amount):
        return super().pay_in(amount * 2)


dan = Saver("Dan").pay_in(5)
isinstance(dan, Account), dan.balance
# %%
ada.__class__ = Saver
ada.pay_in(1).balance
# %%
audit = Counter()
seen = defaultdict(set)
for account in bank.accounts.values():
    audit[type(account).__name__] += 1
    seen[account.balance > 50].add(account.owner)
audit.most_common(1)
# %%
audit.update(["Saver", "Saver"])
seen[True].discard("Ada")
print(dict(audit), {key: sorted(each) for key, each in seen.items()})
# %%
ada.friend, bob.friend = bob, ada
ada.friend.friend is ada
# %%
del bob.friend
hasattr(bob, "friend")
