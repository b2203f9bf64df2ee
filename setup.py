from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Each of these runs inside somebody's production service: few, well kept, and
# with ranges rather than pins. docs/how-it-works.md says what each is for.
RUNTIME = [
    "PasteDeploy>=3.0,<4",
    "gunicorn>=23,<28",
    "WebOb>=1.8.8,<2",
    "requests>=2.31,<3",
    "opentelemetry-proto>=1.35,<2",
    "rich>=13,<16",
    "click>=8.1,<9",
]
# Imported by the worker that a scrape comes to, when the first one does.
PROMETHEUS = ["prometheus-client>=0.20,<1"]
# What gunicorn_django and paste_agent.django serve.
DJANGO = ["Django>=4.2"]
# What the tests drive the agent with: other servers, frameworks, a collector.
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "Paste>=3.10",
    "PasteScript>=3.7",
    "setuptools<82",  # PasteScript imports pkg_resources
    "waitress>=3",
    "pyramid>=2",
    "Routes>=2.5",
    "gevent>=24.10.1",
    "packaging",  # gunicorn's gevent worker imports it
    "tornado>=6.5",
    "rotel>=0.0.1a15",
    # Libraries that are instrumented.
    "SQLAlchemy>=2",
    "psycopg2-binary>=2.9",
    "psycopg[binary]>=3.1",
    "PyMySQL>=1.1",
    "httpx>=0.27",
    "redis>=5",
    "pymemcache>=4",
    "Jinja2>=3.1",
    "Mako>=1.3",
    "Chameleon>=4",
    "Kajiki>=0.9",
    "cornice>=6",
    "Flask>=3",
    *DJANGO,
    "bottle>=0.12.25",
    "falcon>=3.1",
    "pecan>=1.5",
    "TurboGears2>=2.5",
    "kombu>=5.3",
    "celery>=5.3",
    *PROMETHEUS,
    "opentelemetry-sdk>=1.20",  # with the API, which is what is seen
    # The dashboard in a real browser, which is Debian's, as its driver is.
    "selenium>=4.20",
    "axe-core-python>=0.1",
]
# Real applications that are served behind the agent.
APPS = [
    "kinto>=26",
    "Zope[wsgi]>=5.8",
    "ZEO>=6",  # Zope's database for several workers
    "pypiserver>=2.3",
    # TurboGears' quickstart, and what it makes.
    "tg.devtools>=2.5.1",
    "gearbox>=0.5",
    "alembic",
    "zope.sqlalchemy>=1.2",
    "repoze.who>=3.2.0rc1",
    "WebHelpers2",
    "Babel>=2.16",
    "Beaker>=1.8",
]
# One more, by itself for its seventy packages.
OPENSTACK = ["barbican>=20"]
LINT = [
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<3",
    "types-requests",
    "types-protobuf",
    "prometheus-client",
    "opentelemetry-api",
    "build",
]

setup(
    name="paste-agent",
    version="0.1.0",
    description="Monitoring agent for WSGI services under gunicorn, switched on by one line of ini",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="wsgi paste pastedeploy gunicorn apm monitoring opentelemetry",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Web Environment",
        "Framework :: Paste",
        "Framework :: Pyramid",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP :: WSGI",
        "Topic :: System :: Monitoring",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["paste_agent", "paste_agent.*"]),
    package_data={"paste_agent": ["py.typed"], "paste_agent.demo": ["static/*"], "paste_agent.dashboard": ["static/*"]},
    python_requires=">=3.10",
    install_requires=RUNTIME,
    extras_require={
        "test": TEST,
        "apps": APPS,
        "openstack": OPENSTACK,
        "lint": LINT,
        "django": DJANGO,
        "prometheus": PROMETHEUS,
    },
    entry_points={
        "paste.filter_app_factory": ["main = paste_agent.filter:main"],
        "paste.server_runner": ["main = paste_agent.server.runner:main"],
        "paste.app_factory": [
            "demo = paste_agent.demo.shop:main",
            "dashboard = paste_agent.dashboard.app:main",
            "metrics = paste_agent.scrape:main",
        ],
        "paste.composite_factory": ["mount = paste_agent.dashboard.mount:main"],
        "console_scripts": [
            "gunicorn_paster = paste_agent.server.gunicorn_paster:run",
            "gunicorn_django = paste_agent.server.gunicorn_django:run",
            "paste-agent = paste_agent.cli.main:run",
        ],
    },
)
