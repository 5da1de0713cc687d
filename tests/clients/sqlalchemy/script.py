"""SQLAlchemy on psycopg and on asyncpg: the core, the ORM and the inspector. Everything that it prints is compared."""

import asyncio
import sys
from datetime import date
from decimal import Decimal

from sqlalchemy import (ARRAY, JSON, Column, Date, ForeignKey, Integer, MetaData, Numeric, String, Table, create_engine, func, insert,
                        inspect, literal_column, select, text, update)
from sqlalchemy.dialects.postgresql import JSONB, insert as upsert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

DSN = sys.argv[1]


def show(what, *values):
    print(what, *(repr(value) for value in values))


def fails(what, work):
    try:
        work()
        print(what, "didn't fail")
    except DBAPIError as error:
        show(what, type(error).__name__, getattr(error.orig, "sqlstate", None), str(error.orig).splitlines()[0])


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    tags: Mapped[list[str]] = mapped_column(ARRAY(String), default=list)
    extra: Mapped[dict | None] = mapped_column(JSONB)
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    published: Mapped[date | None] = mapped_column(Date, index=True)
    version: Mapped[int] = mapped_column(default=1)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")
    __mapper_args__ = {"version_id_col": version}


def orm(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ada = Author(name="Ada", tags=["maths"], extra={"born": 1815}, books=[Book(title="Notes", price=Decimal("3.50"), published=date(1843, 9, 1))])
        session.add_all([ada, Author(name="Mary", books=[Book(title=f"Volume {n}", price=n) for n in range(1, 400)])])
        session.flush()
        show("flushed", ada.id, ada.books[0].author_id)
        session.commit()
        show("reloaded", ada.name, ada.tags, ada.extra, ada.books[0].price)
    with Session(engine) as session:
        authors = session.scalars(select(Author).options(selectinload(Author.books)).order_by(Author.id)).all()
        show("eager", [(author.name, len(author.books), sum(book.price for book in author.books)) for author in authors])
        joined = session.scalars(select(Book).options(joinedload(Book.author)).where(Book.price < 3).order_by(Book.id)).all()
        show("joined", [(book.title, book.author.name) for book in joined])
        authors[0].name = "Ada Lovelace"
        authors[0].books[0].price += 1
        authors[1].books.pop()
        session.commit()
        show("changed", session.scalar(select(func.count()).select_from(Book)), authors[0].books[0].price, authors[0].books[0].version)
    with Session(engine) as session:
        session.add(Author(name="Mary"))
        fails("unique", session.flush)
        session.rollback()
        with session.begin():
            session.add(Author(name="Outer"))
            try:
                with session.begin_nested():
                    session.add(Author(name="Outer"))
                    session.flush()
            except IntegrityError as error:
                show("savepoint", error.orig.sqlstate)
        show("kept", session.scalars(select(Author.name).order_by(Author.name)).all())
        session.commit()
        session.execute(update(Author).where(Author.name == "Outer").values(tags=["a", "b"]))
        show("returning", session.execute(insert(Author).values(name="New").returning(Author.name, Author.tags)).all())
        show("locked", session.scalars(select(Author.name).where(Author.name == "New").with_for_update()).all())
        session.rollback()


def core(engine):
    metadata = MetaData()
    stock = Table("stock", metadata, Column("name", String, primary_key=True), Column("amount", Integer, server_default="0"), Column("about", JSON))
    metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(stock), [{"name": f"item {n}", "amount": n, "about": {"n": [n]}} for n in range(2500)])
        statement = upsert(stock).values(name="item 7", amount=100)
        show("upsert", conn.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"amount": stock.c.amount + statement.excluded.amount}).returning(stock.c.amount)).scalar_one())
    with engine.connect() as conn:
        show("sum", conn.execute(select(func.sum(stock.c.amount), func.count())).one())
        result = conn.execution_options(stream_results=True, yield_per=100).execute(select(stock.c.amount).order_by(stock.c.amount))
        show("streamed", sum(row.amount for row in result))
        result = conn.execution_options(stream_results=True, max_row_buffer=10).execute(select(stock.c.name).order_by(stock.c.name).limit(30))
        show("partitions", [len(part) for part in result.partitions(8)])
    for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"):
        with engine.connect().execution_options(isolation_level=level) as conn:
            show(level, conn.get_isolation_level(), conn.execute(text("SELECT count(*) FROM stock")).scalar_one())
    with engine.connect().execution_options(postgresql_readonly=True, postgresql_deferrable=True, isolation_level="SERIALIZABLE") as conn:
        show("read only", conn.execute(text("SHOW transaction_read_only")).scalar_one())
        fails("write", lambda: conn.execute(text("DELETE FROM stock")))
    with engine.connect() as conn:
        fails("syntax", lambda: conn.execute(text("SELEC 1")))
        fails("failed", lambda: conn.execute(text("SELECT 1")))
        conn.rollback()
        fails("division", lambda: conn.execute(select(literal_column("1") / 0)))
        conn.rollback()
        with conn.begin() as outer:
            conn.execute(stock.delete())
            with conn.begin_nested() as nested:
                conn.execute(insert(stock).values(name="only"))
                nested.rollback()
            show("inside", conn.execute(select(func.count()).select_from(stock)).scalar_one())
            outer.rollback()
        show("outside", conn.execute(select(func.count()).select_from(stock)).scalar_one())


def inspector(engine):
    about = inspect(engine)
    show("tables", sorted(about.get_table_names()), about.get_schema_names(), about.default_schema_name)
    for table in ("author", "book"):
        show(table, [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in about.get_columns(table)])
        show(table, about.get_pk_constraint(table), about.get_foreign_keys(table), about.get_indexes(table), about.get_unique_constraints(table))
    reflected = MetaData()
    reflected.reflect(engine)
    show("reflected", sorted(reflected.tables), str(reflected.tables["book"].c.price.type))


async def asynchronous(engine):
    async with AsyncSession(engine) as session:
        show("first", (await session.scalars(select(Author.name).order_by(Author.id))).all())
        session.add(Author(name="Async", books=[Book(title="Later", price=9)]))
        await session.commit()
        stream = await session.stream_scalars(select(Book.title).order_by(Book.id).execution_options(yield_per=50))
        show("streamed", len([title async for title in stream]))
        try:
            session.add(Author(name="Async"))
            await session.flush()
        except IntegrityError as error:
            show("unique", error.orig.sqlstate)
        await session.rollback()
        show("author", (await session.scalars(select(Author).where(Author.name == "Async").options(selectinload(Author.books)))).one().books[0].title)
    async with engine.connect() as conn:
        await conn.run_sync(lambda sync: show("inspected", sorted(inspect(sync).get_table_names())))

    async def one(number):
        async with engine.begin() as conn:
            await conn.execute(text(f"SET LOCAL app.number = '{number}'"))
            return (await conn.execute(text("SELECT current_setting('app.number')"))).scalar_one()

    show("pool", await asyncio.gather(*(one(number) for number in range(30))))
    await engine.dispose()


url = DSN.replace("postgresql://", "postgresql+psycopg://")
engine = create_engine(url, pool_size=3, pool_pre_ping=True)
for section in (orm, core, inspector):
    print("===", section.__name__)
    section(engine)
engine.dispose()
print("=== asynchronous")
asyncio.run(asynchronous(create_async_engine(DSN.replace("postgresql://", "postgresql+asyncpg://"), pool_size=4)))
print("done")
