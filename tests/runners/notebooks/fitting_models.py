# %%
import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

np.random.seed(11)
# %%
X = np.random.normal(size=(300, 4))
y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + np.random.normal(scale=0.3, size=300) > 0).astype(int)
y.mean()
# %%
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
X_train.shape, X_test.shape
# %%
scaler = StandardScaler()
scaler.fit(X_train);
# %%
scaler.mean_.round(3)
# %%
model = make_pipeline(StandardScaler(), LogisticRegression())
model
# %%
model.fit(X_train, y_train)
print("fitted")
# %%
round(model.score(X_test, y_test), 3)
# %%
online = SGDClassifier(random_state=0)
history = []
for epoch in range(5):
    online.partial_fit(X_train, y_train, classes=[0, 1])
    history.append(online.score(X_test, y_test))
len(history)
# %%
for epoch in range(3):
    online.partial_fit(X_train, y_train)
    history.append(round(online.score(X_test, y_test), 3))
print(len(history), online.t_)
# %%
model.set_params(logisticregression__C=0.1)
model.get_params()["logisticregression__C"]
# %%
results = {}
for C in (0.1, 1.0, 10.0):
    model.set_params(logisticregression__C=C).fit(X_train, y_train)
    results[C] = round(model.score(X_test, y_test), 3)
results
# %%
best = max(results, key=results.get)
model.set_params(logisticregression__C=best)
model.fit(X_train, y_train).score(X_test, y_test) > 0.5
# %%
clusters = KMeans(3, n_init=1, random_state=0)
labels = clusters.fit_predict(X)
sorted(np.bincount(labels).tolist())
# %%
steps = dict(model.named_steps)
steps["logisticregression"].note = "the best"
model[-1].note
# %%
coefficients = model[-1].coef_
coefficients[0, 3] = 0.0
model[-1].coef_[0, 3]
